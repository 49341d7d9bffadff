#!lua flags=allow-oom
--[[
refund: file the refund of a booked charge in the outbox.

It changes no counter: the quota is back when the ledger has booked it. Whether
the charge exists and how much of it is left only the ledger can know.
Safe to repeat: the ledger's refund_id is unique.

KEYS[1] meta      hash    run_id, epoch, seq
KEYS[2] outbox    stream  gets the event
KEYS[3] doorbell  string  set: a drainer was called or is at work

ARGV[1] request_id    of the charge
ARGV[2] user_id
ARGV[3] payload       JSON object: of the event what no other argument says (model/events.py)
ARGV[4] doorbell_ms

Returns {outcome, ring}
  FILED  the event is in the outbox
]]
local meta, outbox, doorbell = KEYS[1], KEYS[2], KEYS[3]
local request_id, user_id, payload, doorbell_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
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
append(meta, outbox, fence(meta), 'refund', request_id, user_id, 0, 0, 0, payload)
return {'FILED', ring(doorbell, doorbell_ms)}
