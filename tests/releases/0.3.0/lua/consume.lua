#!lua flags=allow-oom
--[[
consume: close the request's hold and file what was used in the outbox, in one step.

Why a script: no crash can fall between closing the hold and recording the
charge. Usage is booked whether or not a hold is open: a late consume still charges.
Safe to repeat: the tombstone answers; once it is gone the ledger's unique key does.
A consume that contradicts an earlier one is kept as an event of weight 0.

KEYS[1] meta      hash    run_id, epoch, seq
KEYS[2] user      hash    held, unposted
KEYS[3] token     hash    held, unposted
KEYS[4] hold      string  the hold to close; becomes a tombstone
KEYS[5] due       zset    open holds by expiry
KEYS[6] outbox    stream  gets the event
KEYS[7] doorbell  string  set: a drainer was called or is at work

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] quota         0 to 2^53
ARGV[5] fingerprint   of the consume
ARGV[6] payload       JSON object: of the event what no other argument says (model/events.py)
ARGV[7] doorbell_ms
ARGV[8] tombstone_ms

Returns {outcome, held, ring}
  CONSUMED              the hold is closed, the event filed; held = the quota it held
  CONSUMED_LATE         no hold was open (expired, released, lost or never made); charged all the same
  ALREADY_CONSUMED      the same consume came before
  OTHER_FORMULA         a consume came before, its fingerprint made by another formula; nothing is changed:
                        the caller asks again with a fingerprint by that one
  IDEMPOTENCY_CONFLICT  another consume or another owner had this request_id; filed as a conflict
]]
local meta, user, token, hold, due, outbox, doorbell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local request_id, user_id, token_id, quota = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local fingerprint, payload, doorbell_ms, tombstone_ms = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
-- The server's clock, and the shard's epoch. Included by every script that trusts what it reads.
-- An epoch is one run of one server as a primary: when its run_id or its replication id is not the one in `meta`,
-- this server was restarted, restored or promoted (an old primary that is promoted again keeps its run_id, never its
-- replication id), and what it remembers may be old. The epoch then moves on, the outbox numbering starts again, and
-- accounts cached in older epochs count as not loaded.
-- The last two words of ARGV are the replication id and the run_id that the caller's connection was told. They are
-- right if they are those in `meta`; in any other case the server is asked (INFO takes 8 us).
-- The second answer is the epoch of loading: what is cached counts only within it. It moves on with the epoch, and
-- when PostgreSQL turns out to be another run of a server than before (new_ledger.lua counts those in `loads`).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function new_epoch(meta, before)
  local now_us, least = time[1] * 1000000 + time[2], (tonumber(before) or 0) + 1
  if not before then
    -- `meta` was lost, the outbox perhaps was not: ids of a stream only grow. No script wrote one above 2^53, or one
    -- without an event in it.
    local last = redis.pcall('XREVRANGE', string.gsub(meta, 'meta$', 'outbox'), '+', '-', 'COUNT', 1)
    local known = last[1] and last[1][2][1] == 'event' and tonumber(string.match(last[1][1], '^%d+')) or 0
    if known < 9007199254740991 then least = math.max(least, known + 1) end
  end
  local epoch = string.format('%.0f', math.max(least, now_us))
  -- What this server remembers of the epoch before, so that the ledger can tell how much of it is missing.
  local seq = redis.call('HGET', meta, 'seq')
  if before then redis.call('HSET', meta, 'before_epoch', before, 'before_seq', seq or 0) end
  redis.call('HSET', meta, 'epoch', epoch, 'seq', 0)
  redis.call('HDEL', meta, 'settled')
  return epoch
end

local function ask_server(meta, known_run_id, known_replid, epoch)
  local info = redis.call('INFO', 'server', 'replication')
  local run_id, replid = string.match(info, 'run_id:(%x+)'), string.match(info, 'master_replid:(%x+)')
  if known_run_id == run_id and known_replid == replid then return epoch end
  -- Release 0.2.0 noted no replication id; of the same run, it may be the one of today.
  if known_run_id ~= run_id or known_replid then epoch = new_epoch(meta, epoch) end
  redis.call('HSET', meta, 'run_id', run_id, 'replid', replid)
  return epoch
end

local function fence(meta)
  local run_id, replid, epoch, loads = unpack(redis.call('HMGET', meta, 'run_id', 'replid', 'epoch', 'loads'))
  if run_id ~= ARGV[#ARGV] or replid ~= ARGV[#ARGV - 1] then epoch = ask_server(meta, run_id, replid, epoch) end
  return epoch, loads and epoch .. '.' .. loads or epoch
end
-- A hold is one string: "<state> <user_id> <token_id> <quota> <fingerprint>". Words behind those are a later release's
-- and are ignored here. A hold whose quota was changed since has the word asked:<quota that was asked for first>: in
-- place of the fingerprint, which only a consumed one has, because release 0.1.0 reads no hold of six words. An open
-- hold of a gateway that named the request by a key of its own ends with key:<that key, in percent-encoding>.
-- States: held, then one of consumed, released, expired (a tombstone that answers repeats for a while).
local function read_hold(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  local state, user_id, token_id, quota, fingerprint = string.match(packed, '^(%a+) (%d+) (%d+) (%d+) (%S+)')
  return state, user_id, token_id, quota, fingerprint, string.match(packed, ' (asked:%d+)'),
    string.match(packed, ' (key:%S+)')
end

-- What the request asked for first.
local function asked_first(quota, asked)
  return asked and string.sub(asked, 7) or quota
end

local function bury_hold(key, state, user_id, token_id, quota, fingerprint, asked, tombstone_ms)
  local words = {state, user_id, token_id, quota, fingerprint == '-' and asked or fingerprint}
  if fingerprint ~= '-' then words[6] = asked end
  redis.call('SET', key, table.concat(words, ' '), 'PX', tombstone_ms)
end
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
local epoch = fence(meta)

local state, held_user, held_token, held_amount, held_fingerprint, asked = read_hold(hold)
if state == 'consumed' and held_fingerprint == fingerprint then return {'ALREADY_CONSUMED', 0, 0} end
-- In front of the last 32 digits is the formula's number.
local other_formula = string.sub(held_fingerprint or '', 1, -33) ~= string.sub(fingerprint, 1, -33)
if state == 'consumed' and other_formula then return {'OTHER_FORMULA', 0, 0} end
if state == 'consumed' or (state and (held_user ~= user_id or held_token ~= token_id)) then
  -- Nothing of it will leave `unposted`, so its quota can't be the weight: the payload keeps it.
  payload = '{"quota":' .. quota .. ',' .. string.sub(payload, 2)
  append(meta, outbox, epoch, 'conflict', request_id, user_id, token_id, 0, 0, payload)
  return {'IDEMPOTENCY_CONFLICT', 0, ring(meta, doorbell, doorbell_ms)}
end

local open = state == 'held'
local held = open and held_amount or '0'
-- Taken back, the hold is due; that counts only if its caller never comes again.
if open then write({'ZADD', due, now_ms, request_id}, 'ZREM', due, request_id) end
if quota ~= '0' then -- an account that nothing is counted of would be a key without an end
  count(user, 'unposted', quota)
  count(token, 'unposted', quota)
end
if held ~= '0' then
  count(user, 'held', '-' .. held)
  count(token, 'held', '-' .. held)
end
append(meta, outbox, epoch, 'consume', request_id, user_id, token_id, quota, held, payload)
if held == '0' and quota ~= '0' then
  -- The cached rows may be idle and about to expire; the counter must outlive that.
  redis.call('PERSIST', user)
  redis.call('PERSIST', token)
end
bury_hold(hold, 'consumed', user_id, token_id, held, fingerprint, asked, tombstone_ms)
return {open and 'CONSUMED' or 'CONSUMED_LATE', tonumber(held), ring(meta, doorbell, doorbell_ms)}
