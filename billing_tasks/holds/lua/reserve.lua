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
ARGV[8] words          more words of the hold: the price's, the caller's own key; '': none

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
--@include payer
--@include take_back
local _, epoch = fence(meta)
local function answer(outcome, a, b) return {outcome, a or 0, b or 0, now_ms, epoch} end

local u = read_account(user)
local state, held_user, held_token, held_amount, _, asked = read_hold(hold)
local available = tonumber(u[1] or 0) - tonumber(u[2] or 0) - tonumber(u[3] or 0)
if state then
  -- A hold that has grown since is still the one that was asked for.
  if held_user ~= user_id or held_token ~= token_id or asked_first(held_amount, asked) ~= amount then
    return answer('IDEMPOTENCY_CONFLICT')
  end
  if state ~= 'held' then return answer('HOLD_CLOSED', state) end
  return answer('ALREADY_HELD', tonumber(redis.call('ZSCORE', due, request_id) or now_ms), available)
end

local backlog = redis.call('XLEN', outbox)
if backlog >= backlog_limit then return answer('BACKLOG_FULL', backlog) end

local t, wanted = read_account(token), tonumber(amount)
local refusal, a, b = check_payer(meta, u, t, epoch, fresh_ms, user_id, wanted)
if refusal then return answer(refusal, a, b) end

local expires_at = now_ms + ttl_ms
local words = {'held', user_id, token_id, amount, '-'}
if ARGV[8] ~= '' then words[6] = ARGV[8] end
count(user, 'held', amount)
count(token, 'held', amount)
write(nil, 'ZADD', due, expires_at, request_id)
redis.call('SET', hold, table.concat(words, ' '))
-- An idle account is about to expire; one that carries a hold must stay.
if tonumber(u[2] or 0) + tonumber(u[3] or 0) == 0 then redis.call('PERSIST', user) end
if tonumber(t[2] or 0) + tonumber(t[3] or 0) == 0 then redis.call('PERSIST', token) end
return answer('HELD', expires_at, available - wanted)
