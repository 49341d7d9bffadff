#!lua
--[[
reserve: open a hold on a user's and a token's quota, or change nothing.

Why a script: the check and the hold must not be separated, or two requests
could both pass the check with the same quota.
Safe to repeat: a request_id that is held already takes nothing again.
Refused before the first write when memory is full (no allow-oom).

KEYS[1] meta      hash    run_id, epoch, seq; version
KEYS[2] user      hash    the user's cached row, and held, unposted
KEYS[3] token     hash    the token's cached row, and held, unposted
KEYS[4] hold      string  the hold to open
KEYS[5] due       zset    open holds by expiry (milliseconds, this server's clock)
KEYS[6] outbox    stream  its length is the backlog

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] amount         quota, 0 to 2^53
ARGV[5] ttl_ms
ARGV[6] backlog_limit  events
ARGV[7] fresh_ms       an older cached row answers STALE; 0: any age will do

Returns {outcome, a, b, now_ms, epoch}; the epoch is that of loading
  HELD                     open now; a = expires_at_ms, b = user's available quota after it
  ALREADY_HELD             open since an earlier call; a, b as above
  HOLD_CLOSED              the same request was consumed, released or expired; a = which
  IDEMPOTENCY_CONFLICT     the request_id came before with another user, token or amount
  BACKLOG_FULL             a = events waiting
  NOT_LOADED               the user or the token is not cached, or in an older epoch; a = the highest version of an
                           account that was seen of PostgreSQL
  STALE                    a cached row is older than fresh_ms, or of a clock that ran ahead; a likewise
  USER_DISABLED            b = age of the cached row in ms, here and below
  TOKEN_OF_ANOTHER_USER
  TOKEN_DISABLED
  TOKEN_EXPIRED
  INSUFFICIENT_USER_QUOTA  a = available quota
  INSUFFICIENT_TOKEN_QUOTA a = available quota
]]
local meta, user, token, hold, due, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local request_id, user_id, token_id, amount = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl_ms, backlog_limit, fresh_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
--@include fence
--@include hold
local _, epoch = fence(meta)
local function version_seen() return tonumber(redis.call('HGET', meta, 'version') or 0) end
-- A row can't have been read later than now, unless the clock was set back since; a little is allowed for its corrections.
local CLOCK_SLACK_MS = 1000
local function answer(outcome, a, b) return {outcome, a or 0, b or 0, now_ms, epoch} end

local u = redis.call('HMGET', user, 'balance', 'held', 'unposted', 'facts', 'loaded_at', 'loaded_epoch')
local user_held, user_unposted = tonumber(u[2] or 0), tonumber(u[3] or 0)
local state, held_user, held_token, held_amount = read_hold(hold)
if state then
  if held_user ~= user_id or held_token ~= token_id or held_amount ~= amount then
    return answer('IDEMPOTENCY_CONFLICT')
  end
  if state ~= 'held' then return answer('HOLD_CLOSED', state) end
  local available = tonumber(u[1] or 0) - user_held - user_unposted
  return answer('ALREADY_HELD', tonumber(redis.call('ZSCORE', due, request_id) or now_ms), available)
end

local backlog = redis.call('XLEN', outbox)
if backlog >= backlog_limit then return answer('BACKLOG_FULL', backlog) end

local t = redis.call('HMGET', token, 'balance', 'held', 'unposted', 'facts', 'loaded_at', 'loaded_epoch')
-- Without attributes (`facts`): an older release wrote what is cached.
if u[6] ~= epoch or t[6] ~= epoch or not (u[4] and t[4]) then return answer('NOT_LOADED', version_seen()) end
local user_age, token_age = now_ms - u[5], now_ms - t[5]
local stale = math.max(user_age, token_age) > fresh_ms or math.min(user_age, token_age) < -CLOCK_SLACK_MS
if fresh_ms > 0 and stale then return answer('STALE', version_seen()) end

if string.match(u[4], '^%S+') ~= 'enabled' then return answer('USER_DISABLED', 0, user_age) end
local status, owner, unlimited, expires = string.match(t[4], '^(%S+) (%d+) ([01]) (%S+)')
if owner ~= user_id then return answer('TOKEN_OF_ANOTHER_USER', 0, token_age) end
if status ~= 'enabled' then return answer('TOKEN_DISABLED', 0, token_age) end
if expires ~= '-' and tonumber(expires) <= now_ms then return answer('TOKEN_EXPIRED', 0, token_age) end

local wanted = tonumber(amount)
local available = tonumber(u[1]) - user_held - user_unposted
if available < wanted then return answer('INSUFFICIENT_USER_QUOTA', available, user_age) end
local token_held, token_unposted = tonumber(t[2] or 0), tonumber(t[3] or 0)
if unlimited ~= '1' then
  local token_available = tonumber(t[1]) - token_held - token_unposted
  if token_available < wanted then return answer('INSUFFICIENT_TOKEN_QUOTA', token_available, token_age) end
end

local expires_at = now_ms + ttl_ms
redis.call('SET', hold, table.concat({'held', user_id, token_id, amount, '-'}, ' '))
redis.call('ZADD', due, expires_at, request_id)
-- An idle account is about to expire; one that carries a hold must stay.
if user_held + user_unposted == 0 then redis.call('PERSIST', user) end
if token_held + token_unposted == 0 then redis.call('PERSIST', token) end
redis.call('HINCRBY', user, 'held', amount)
redis.call('HINCRBY', token, 'held', amount)
return answer('HELD', expires_at, available - wanted)
