#!lua flags=allow-oom
--[[
release: close an open hold unused, because the upstream call failed.

Why a script: the quota returns and the event that says so is filed in one step.
Safe to repeat: the tombstone answers. Goes by hold, never by an amount.

KEYS[1] meta      hash    run_id, epoch, seq
KEYS[2] user      hash    held
KEYS[3] token     hash    held
KEYS[4] hold      string  the hold to close; becomes a tombstone
KEYS[5] due       zset    open holds by expiry
KEYS[6] outbox    stream  gets the event
KEYS[7] doorbell  string  set: a drainer was called or is at work

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] payload       JSON object: of the event what no other argument says (model/events.py)
ARGV[5] doorbell_ms
ARGV[6] tombstone_ms
ARGV[7] idle_seconds

Returns {outcome, held, ring}
  RELEASED              the quota is back; held = how much
  ALREADY_RELEASED      released or expired before; nothing to release
  ALREADY_CONSUMED      the request was charged; refund the charge instead
  NO_HOLD               no trace of a hold: never made, forgotten, or lost with the server
  IDEMPOTENCY_CONFLICT  the hold is another user's or token's
]]
local meta, user, token, hold, due, outbox, doorbell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local request_id, user_id, token_id, payload = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local doorbell_ms, tombstone_ms, idle_seconds = ARGV[5], ARGV[6], ARGV[7]
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
-- Needs fence. Append one event to the shard's outbox. Its id is <epoch>-<seq> and seq has no gaps, so a lost event shows.
-- What scripts read of it is one string: "<kind> <request_id> <user_id> <token_id> <weight> <held> <filed_ms>"
-- (include/entry.lua); seven fields took Redis and the worker three times as long to read.
local function append(meta, outbox, epoch, kind, request_id, user_id, token_id, weight, held, payload)
  local seq = redis.call('HINCRBY', meta, 'seq', 1)
  redis.call('XADD', outbox, epoch .. '-' .. string.format('%.0f', seq),
    'event', table.concat({kind, request_id, user_id, token_id, weight, held, string.format('%.0f', now_ms)}, ' '),
    'payload', payload)
end

-- 1 if the caller should ring: no call was made within doorbell_ms, and no drainer is at work.
local function ring(doorbell, doorbell_ms)
  if redis.call('SET', doorbell, '1', 'NX', 'PX', doorbell_ms) then return 1 end
  return 0
end
-- An account with nothing held and nothing unposted has no counters to keep: let it expire after a while.
local function expire_if_idle(account, idle_seconds)
  local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
  if tonumber(held or 0) == 0 and tonumber(unposted or 0) == 0 then
    redis.call('EXPIRE', account, idle_seconds)
    return true
  end
  return false
end
-- Release an open hold: the event first, then the counters, then the tombstone.
-- `weight` stays set aside (in `unposted`) until the ledger has booked the event: '0', or all that was held.
local function close_unused(k, state, request_id, user_id, token_id, held, weight, payload, tombstone_ms, idle_seconds,
    epoch)
  append(k.meta, k.outbox, epoch, 'release', request_id, user_id, token_id, weight, held, payload)
  redis.call('ZREM', k.due, request_id)
  if held ~= '0' then -- HINCRBY refuses '-0', and Lua does not roll back
    redis.call('HINCRBY', k.user, 'held', '-' .. held)
    redis.call('HINCRBY', k.token, 'held', '-' .. held)
  end
  if weight ~= '0' then
    redis.call('HINCRBY', k.user, 'unposted', weight)
    redis.call('HINCRBY', k.token, 'unposted', weight)
  end
  bury_hold(k.hold, state, user_id, token_id, held, '-', tombstone_ms)
  expire_if_idle(k.user, idle_seconds)
  expire_if_idle(k.token, idle_seconds)
end
local epoch = fence(meta)

local state, held_user, held_token, held = read_hold(hold)
if not state then return {'NO_HOLD', 0, 0} end
if held_user ~= user_id or held_token ~= token_id then return {'IDEMPOTENCY_CONFLICT', 0, 0} end
if state == 'consumed' then return {'ALREADY_CONSUMED', 0, 0} end
if state ~= 'held' then return {'ALREADY_RELEASED', 0, 0} end

local keys = {meta = meta, user = user, token = token, hold = hold, due = due, outbox = outbox}
close_unused(keys, 'released', request_id, user_id, token_id, held, '0', payload, tombstone_ms, idle_seconds, epoch)
return {'RELEASED', tonumber(held), ring(doorbell, doorbell_ms)}
