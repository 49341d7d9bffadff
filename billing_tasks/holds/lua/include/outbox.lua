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
