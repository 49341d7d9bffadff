#!lua flags=allow-oom
--[[
ring: claim the right to call a drainer, for an outbox that perhaps no drainer was called for.

Why a script: a server whose memory is full refuses a plain SET, and then a ring
that was lost would never be repeated for the outbox that fills the memory.

KEYS[1] doorbell  string  set: a drainer was called or is at work

ARGV[1] doorbell_ms

Returns {outcome}
  RUNG      the caller is to call a drainer
  ATTENDED  a drainer was called within doorbell_ms, or is at work
]]
local doorbell = KEYS[1]
local doorbell_ms = ARGV[1]
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
if ring(doorbell, doorbell_ms) == 1 then return {'RUNG'} end
return {'ATTENDED'}
