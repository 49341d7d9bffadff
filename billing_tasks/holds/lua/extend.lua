#!lua
--[[
extend: set what an open hold holds, and keep it for another ttl; or change nothing.

Why a script: the check and the growth must not be separated, or two streams could both grow by the
same quota.
Safe to repeat: the total is set, not added to. What the request asked for first stays known, so that a
reservation that is repeated is still the same.
Refused before the first write when memory is full (no allow-oom). A total below what is held gives quota back.

KEYS[1] meta      hash    run_id, epoch, seq; version
KEYS[2] user      hash    the user's cached row, and held, unposted
KEYS[3] token     hash    the token's cached row, and held, unposted
KEYS[4] hold      string  the hold to change
KEYS[5] due       zset    open holds by expiry (milliseconds, this server's clock)

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] total          quota to be held altogether, 0 to 2^53
ARGV[5] ttl_ms
ARGV[6] fresh_ms       an older cached row answers STALE; 0: any age will do

Returns {outcome, a, b, now_ms, epoch}; the epoch is that of loading
  EXTENDED                 a = expires_at_ms, b = user's available quota after it
  NO_HOLD                  no trace of a hold
  HOLD_CLOSED              consumed, released or expired; a = which
  IDEMPOTENCY_CONFLICT     the hold is another user's or token's
  NOT_LOADED               the user or the token is not cached, or in an older epoch; a = the highest version of an
                           account that was seen of PostgreSQL
  STALE                    a cached row is older than fresh_ms, or of a clock that ran ahead; a likewise
  USER_DISABLED            b = age of the cached row in ms, here and below
  TOKEN_OF_ANOTHER_USER
  TOKEN_DISABLED
  TOKEN_EXPIRED
  INSUFFICIENT_USER_QUOTA  a = available quota, beside what is held already
  INSUFFICIENT_TOKEN_QUOTA a = available quota, likewise
]]
local meta, user, token, hold, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local request_id, user_id, token_id, total = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl_ms, fresh_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
--@include fence
--@include hold
--@include payer
--@include take_back
local _, epoch = fence(meta)
local function answer(outcome, a, b) return {outcome, a or 0, b or 0, now_ms, epoch} end

local state, held_user, held_token, held, _, asked, more = read_hold(hold)
if not state then return answer('NO_HOLD') end
if held_user ~= user_id or held_token ~= token_id then return answer('IDEMPOTENCY_CONFLICT') end
if state ~= 'held' then return answer('HOLD_CLOSED', state) end

local growth = tonumber(total) - tonumber(held)
local u = read_account(user)
local available = tonumber(u[1] or 0) - tonumber(u[2] or 0) - tonumber(u[3] or 0)
if growth > 0 then
  local refusal, a, b = check_payer(meta, u, read_account(token), epoch, fresh_ms, user_id, growth)
  if refusal then return answer(refusal, a, b) end
end

local expires_at = now_ms + ttl_ms
count(user, 'held', string.format('%.0f', growth))
count(token, 'held', string.format('%.0f', growth))
write(nil, 'ZADD', due, 'GT', expires_at, request_id)
redis.call('SET', hold, table.concat({'held', user_id, token_id, total, asked or 'asked:' .. held, more}, ' '))
-- A hold of nothing that grows: its accounts must stay.
redis.call('PERSIST', user)
redis.call('PERSIST', token)
return answer('EXTENDED', tonumber(redis.call('ZSCORE', due, request_id)), available - growth)
