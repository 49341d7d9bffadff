#!lua flags=allow-oom
--[[
ring: claim the right to call a drainer, for an outbox that perhaps no drainer was called for.

Why a script: a server whose memory is full refuses a plain SET, and then a ring
that was lost would never be repeated for the outbox that fills the memory.
A doorbell that stays set for longer than any caller means it to is of a clock that had run ahead, or of a stranger.

KEYS[1] doorbell  string  set: a drainer was called or is at work
KEYS[2] meta      hash    rings: how many calls no drainer has answered

ARGV[1] doorbell_ms
ARGV[2] longest_ms   no doorbell is meant to stay set for longer
ARGV[3] anew         1: a worker is there now; earlier calls don't count

Returns {outcome}
  RUNG      the caller is to call a drainer
  ATTENDED  a drainer was called within doorbell_ms, or often enough while no worker answers, or is at work
]]
local doorbell, meta = KEYS[1], KEYS[2]
local doorbell_ms, longest_ms, anew = ARGV[1], tonumber(ARGV[2]), ARGV[3]
-- Writes that fail on what another program put there (a key of another type, a field that is no number). Each is taken
-- back when a later one fails: Lua does not roll back, and the command is sent once more when `mend` has set that aside,
-- so what failed must have changed nothing. What can't fail comes behind all of these.
local taken_back = {}

local function fail(message)
  for at = #taken_back, 1, -1 do redis.call(unpack(taken_back[at])) end
  error(message)
end

-- `back` is the command that undoes it.
local function write(back, ...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then fail(answer.err) end
  taken_back[#taken_back + 1] = back
  return answer
end

-- HINCRBY by a whole number, as a string.
local function count(key, field, by)
  local back = string.sub(by, 1, 1) == '-' and string.sub(by, 2) or by == '0' and by or '-' .. by
  return write({'HINCRBY', key, field, back}, 'HINCRBY', key, field, by)
end
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
if anew == '1' then redis.call('HDEL', meta, 'rings') end
local ttl = redis.call('PTTL', doorbell)
if ttl == -1 or ttl > longest_ms then redis.call('DEL', doorbell) end
if ring(meta, doorbell, doorbell_ms) == 1 then return {'RUNG'} end
return {'ATTENDED'}
