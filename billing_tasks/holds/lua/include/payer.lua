-- Needs fence. May this user and token set so much more aside?
-- A row can't have been read later than now, unless the clock was set back since; a little is allowed for corrections.
local CLOCK_SLACK_MS = 1000

-- What a check needs of a cached account: balance, held, unposted, attributes, when and in which epoch it was loaded.
local function read_account(key)
  return redis.call('HMGET', key, 'balance', 'held', 'unposted', 'facts', 'loaded_at', 'loaded_epoch')
end

-- nil if they may, else the outcome and what it tells. `wanted` in quota.
local function check_payer(meta, u, t, epoch, fresh_ms, user_id, wanted)
  local function version_seen() return tonumber(redis.call('HGET', meta, 'version') or 0) end
  -- Without attributes (`facts`): an older release wrote what is cached.
  if u[6] ~= epoch or t[6] ~= epoch or not (u[4] and t[4]) then return 'NOT_LOADED', version_seen() end
  local user_age, token_age = now_ms - u[5], now_ms - t[5]
  local stale = math.max(user_age, token_age) > fresh_ms or math.min(user_age, token_age) < -CLOCK_SLACK_MS
  if fresh_ms > 0 and stale then return 'STALE', version_seen() end

  if string.match(u[4], '^%S+') ~= 'enabled' then return 'USER_DISABLED', 0, user_age end
  local status, owner, unlimited, expires = string.match(t[4], '^(%S+) (%d+) ([01]) (%S+)')
  if owner ~= user_id then return 'TOKEN_OF_ANOTHER_USER', 0, token_age end
  if status ~= 'enabled' then return 'TOKEN_DISABLED', 0, token_age end
  if expires ~= '-' and tonumber(expires) <= now_ms then return 'TOKEN_EXPIRED', 0, token_age end

  local available = tonumber(u[1]) - tonumber(u[2] or 0) - tonumber(u[3] or 0)
  if available < wanted then return 'INSUFFICIENT_USER_QUOTA', available, user_age end
  if unlimited ~= '1' then
    local token_available = tonumber(t[1]) - tonumber(t[2] or 0) - tonumber(t[3] or 0)
    if token_available < wanted then return 'INSUFFICIENT_TOKEN_QUOTA', token_available, token_age end
  end
end
