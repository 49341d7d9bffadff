#!lua
--[[
reserve: open a hold on a user's and a token's quota, or change nothing.

Why a script: the check and the hold must not be separated, or two requests
could both pass the check with the same quota.
Safe to repeat: a request_id that is held already takes nothing again.
Refused before the first write when memory is full (no allow-oom).

KEYS[1] meta      hash    run_id, epoch, seq
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

Returns {outcome, a, b, now_ms, epoch}
  HELD                     open now; a = expires_at_ms, b = user's available quota after it
  ALREADY_HELD             open since an earlier call; a, b as above
  HOLD_CLOSED              the same request was consumed, released or expired; a = which
  IDEMPOTENCY_CONFLICT     the request_id came before with another user, token or amount
  BACKLOG_FULL             a = events waiting
  NOT_LOADED               the user or the token is not cached, or in an older epoch
  STALE                    a cached row is older than fresh_ms
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
-- The server's clock, and the shard's epoch. Included by every script that trusts what it reads.
-- An epoch is one run of one server: when its run_id is not the one in `meta`, this server was
-- restarted, restored or promoted, and what it remembers may be old. The epoch then moves on, the
-- outbox numbering starts again, and accounts cached in older epochs count as not loaded.
-- The last word of ARGV is the run_id that the caller's connection was told when it was opened. A
-- connection does not outlive its server, so that word is right if it is the one in `meta`; in any
-- other case the server is asked (INFO takes 8 us).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function fence(meta)
  local known_run_id, epoch = unpack(redis.call('HMGET', meta, 'run_id', 'epoch'))
  if known_run_id == ARGV[#ARGV] then return epoch end
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  if known_run_id == run_id then return epoch end
  local now_us = time[1] * 1000000 + time[2]
  local before = epoch
  epoch = string.format('%.0f', math.max((tonumber(epoch) or 0) + 1, now_us))
  -- What this server remembers of the epoch before, so that the ledger can tell how much of it is missing.
  local seq = redis.call('HGET', meta, 'seq')
  if before then redis.call('HSET', meta, 'before_epoch', before, 'before_seq', seq or 0) end
  redis.call('HSET', meta, 'run_id', run_id, 'epoch', epoch, 'seq', 0)
  return epoch
end
-- A hold is one string: "<state> <user_id> <token_id> <quota> <fingerprint>". Words behind those are a later
-- release's and are ignored here.
-- States: held, then one of consumed, released, expired (a tombstone that answers repeats for a while).
local function read_hold(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  return string.match(packed, '^(%a+) (%d+) (%d+) (%d+) (%S+)')
end

local function bury_hold(key, state, user_id, token_id, quota, fingerprint, tombstone_ms)
  redis.call('SET', key, table.concat({state, user_id, token_id, quota, fingerprint}, ' '), 'PX', tombstone_ms)
end
local epoch = fence(meta)
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
if u[6] ~= epoch or t[6] ~= epoch or not (u[4] and t[4]) then return answer('NOT_LOADED') end
local user_age, token_age = now_ms - u[5], now_ms - t[5]
if fresh_ms > 0 and math.max(user_age, token_age) > fresh_ms then return answer('STALE') end

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
