-- Needs fence and take_back. Append one event to the shard's outbox. Its id is <epoch>-<seq> and seq has no gaps, so a
-- lost event shows.
-- What scripts read of it is one string: "<kind> <request_id> <user_id> <token_id> <weight> <held> <filed_ms>"
-- (include/entry.lua); seven fields took Redis and the worker three times as long to read.
-- What another program wrote never keeps an event out: an outbox that is no stream is set aside, and an entry that no
-- script numbered gets a number behind the event, with the id it had as its first field.
local function entry_id(epoch, seq) return epoch .. '-' .. string.format('%.0f', seq) end

local function set_aside(key)
  redis.call('RENAME', key, (string.gsub(key, '}:', '}:strange:', 1)) .. ':' .. string.format('%.0f', now_ms))
end

-- Write the outbox anew, without the entries that no script numbered; returns those. A stream takes no id below the
-- highest that it ever had, also if that entry was deleted.
local function make_room(outbox, epoch, seq)
  local found = redis.call('TYPE', outbox).ok
  if found ~= 'stream' then
    if found ~= 'none' then set_aside(outbox) end
    return {}
  end
  local old, from = outbox .. ':old', '-'
  redis.call('RENAME', outbox, old)
  while true do
    local page = redis.call('XRANGE', old, from, '(' .. entry_id(epoch, seq), 'COUNT', 500)
    for _, entry in ipairs(page) do redis.call('XADD', outbox, entry[1], unpack(entry[2])) end
    if #page < 500 then break end
    from = '(' .. page[#page][1]
  end
  local strange = redis.call('XRANGE', old, entry_id(epoch, seq), '+')
  redis.call('DEL', old)
  return strange
end

local function append(meta, outbox, epoch, kind, request_id, user_id, token_id, weight, held, payload)
  local seq = count(meta, 'seq', '1')
  local header = table.concat({kind, request_id, user_id, token_id, weight, held, string.format('%.0f', now_ms)}, ' ')
  local function add() return redis.pcall('XADD', outbox, entry_id(epoch, seq), 'event', header, 'payload', payload) end
  local answer = add()
  if not answer.err then return end
  local strange = make_room(outbox, epoch, seq)
  answer = add()
  if answer.err then fail(answer.err) end
  for _, entry in ipairs(strange) do
    seq = redis.call('HINCRBY', meta, 'seq', 1)
    local words = #entry[2] <= 1000 and entry[2] or {'text', table.concat(entry[2], ' ')}
    redis.call('XADD', outbox, entry_id(epoch, seq), 'strange', entry[1], unpack(words))
  end
end

-- 1 if the caller should ring: no call was made within doorbell_ms, and no drainer is at work. While nobody takes the
-- calls they wait in the broker, so they become rarer: the first 8, then each that doubles their number.
local function ring(meta, doorbell, doorbell_ms)
  if not redis.call('SET', doorbell, '1', 'NX', 'PX', doorbell_ms) then return 0 end
  local rings, at = redis.pcall('HINCRBY', meta, 'rings', 1), 8
  if type(rings) == 'table' then -- no number: another program's; the event that calls is filed by now
    redis.call('HDEL', meta, 'rings')
    rings = 1
  end
  while at < rings do at = at * 2 end
  return (rings <= 8 or rings == at) and 1 or 0
end
