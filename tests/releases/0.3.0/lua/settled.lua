#!lua flags=allow-oom
--[[
settled: the ledger has committed these events; take them out of the outbox.

Why a script: an event and its weight in `unposted` leave together, and the
balance that PostgreSQL returned is written no later than that, so that quota is
counted by the balance or by `unposted` at every moment.
Owner and weight are read from the outbox entry itself, never from ARGV: a
worker that mixes up its batch can't move another user's quota.
Safe to repeat: an entry that is gone changes nothing.
A row that was read long ago, or in another epoch, may be old: it is not cached, only what is older than it
is forgotten.
If another run of PostgreSQL than the one that booked them is known by now, it may have been restored without them: they
stay, to be booked again.

KEYS[1] meta       hash    run_id, epoch, seq; settled: the highest number removed; version: the highest seen
KEYS[2] outbox     stream
KEYS[3...] accounts, users and tokens, each once

ARGV[1] prefix         of this shard's keys
ARGV[2] read_ms        this server's clock before the ledger was asked
ARGV[3] epoch          likewise; the epoch of loading
ARGV[4] idle_seconds
ARGV[5] ledger         the run of PostgreSQL that booked them and has these rows; '' if it did not say
ARGV[6] events         how many; then for each: entry id, and its event as the caller read it ('' if no script wrote it)
ARGV[...] then for each row: key number in KEYS, version, balance, attributes (commands/accounts.py)

Returns {removed, gone, mismatched}, or nothing if they stay
]]
local meta, outbox = KEYS[1], KEYS[2]
local prefix, read_ms, epoch, idle_seconds, ledger = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local events = tonumber(ARGV[6])
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
-- What outbox.lua wrote of an event; empty words and a weight of 0 for what it did not write. Words and fields behind
-- those it knows are a later release's and are ignored.
-- replies.parse_entry reads exactly the same: a script that saw a weight where the worker saw none
-- would keep the entry for ever.
local function read_entry(entry)
  local kind, request_id, user_id, token_id, weight, held, filed_ms, more
  if entry[2][1] == 'event' and #entry[2] >= 4 and entry[2][3] == 'payload' then
    kind, request_id, user_id, token_id, weight, held, filed_ms, more =
      string.match(entry[2][2], '^(%a+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+)(.*)$')
  end
  if not kind or (more ~= '' and string.sub(more, 1, 1) ~= ' ') or math.max(#user_id, #token_id, #weight, #held, #filed_ms) > 18 then return '', '', '', '', 0 end
  return kind, request_id, user_id, token_id, tonumber(weight)
end
local outbox_epoch, current_epoch = fence(meta)
-- What the ledger is known to have: if it comes back older, that tells how much it lost.
local seen = redis.call('HMGET', meta, 'settled', 'version', 'seq', 'ledger')
if ledger ~= '' and seen[4] and seen[4] ~= ledger then return {} end
-- As load.lua: a worker that was frozen comes back with rows that others have replaced since.
local fresh = current_epoch == epoch and math.abs(now_ms - tonumber(read_ms)) <= 5000
local declared = {}
for i = 3, #KEYS do declared[KEYS[i]] = true end

-- From here on a Lua number skips integers.
local MAX_EXACT = 9007199254740992
local function take_off(account, weight)
  redis.call('HINCRBY', account, 'unposted', string.format('-%.0f', weight))
end

-- A user's events come together, so each account's key is built once.
local keys_of = {user = {}, token = {}}
local function key_of(which, id)
  local key = keys_of[which][id]
  if not key then
    key = prefix .. which .. ':' .. id
    keys_of[which][id] = key
  end
  return key
end

-- The weight that leaves with one more event of the account.
local weights = {}
local function add(account, weight)
  local sum = (weights[account] or 0) + weight
  if sum >= MAX_EXACT then
    if weights[account] then take_off(account, weights[account]) end
    sum = weight
  end
  weights[account] = sum
end

-- Owner and weight of an entry, if it is the one that the caller read.
local function read_same(entry, said)
  if said == '' then
    if read_entry(entry) ~= '' then return nil end
    return '', '', 0
  end
  if entry[2][2] ~= said then return nil end
  local user_id, token_id, weight = string.match(said, '^%a+ %S+ (%d+) (%d+) (%d+) ')
  return user_id, token_id, tonumber(weight)
end

local gone, mismatched, leaving, highest_seq = 0, 0, {}, 0
-- The number of an entry that leaves, if it is one of this epoch.
local function note_seq(id)
  local entry_epoch, seq = string.match(id, '^(%d+)-(%d+)$')
  if entry_epoch == outbox_epoch then highest_seq = math.max(highest_seq, tonumber(seq)) end
end

for at = 7, 5 + events * 2, 2 do
  local id = ARGV[at]
  local entry = redis.call('XRANGE', outbox, id, id)[1]
  if not entry then
    gone = gone + 1
  else
    local user_id, token_id, weight = read_same(entry, ARGV[at + 1])
    if not user_id then
      mismatched = mismatched + 1
    elseif weight > 0 then
      local user, token = key_of('user', user_id), key_of('token', token_id)
      if declared[user] and declared[token] then
        leaving[#leaving + 1] = id
        add(user, weight)
        add(token, weight)
      else
        mismatched = mismatched + 1
      end
    else
      leaving[#leaving + 1] = id
    end
  end
end
for _, id in ipairs(leaving) do note_seq(id) end

-- A field that is no number is another program's; the words are those by which `mend` is called.
local function number(value) return tonumber(value or 0) or error('a field is not an integer') end

-- An entry that no script numbered may lie above all that did.
highest_seq = math.min(highest_seq, number(seen[3]))
local settled_before, highest_version = number(seen[1]), number(seen[2])
local version_before = highest_version
local function note_version(version)
  if tonumber(version) > highest_version then highest_version = tonumber(version) end
end

-- Where in ARGV the row of an account begins. The last two words are for fence.
local row_of = {}
for at = 7 + events * 2, #ARGV - 5, 4 do row_of[KEYS[tonumber(ARGV[at])]] = at end

-- The fields of a cached row that this row makes better, for HSET (to write those that stay costs more than a look), and
-- whether what is cached counts no more.
local function news(account, row, version, loaded_epoch, floor_epoch, attributes)
  if not row then return {} end
  local row_version, known_version = ARGV[row + 1], number(version)
  if not fresh then
    -- The row may be old by now; but a caller that loads the account must not bring less than it, or the
    -- charge would count nowhere.
    local trusted = loaded_epoch == current_epoch or floor_epoch == current_epoch
    if not trusted or known_version < tonumber(row_version) then
      return {'version', row_version, 'floor_epoch', current_epoch}, true
    end
  elseif (loaded_epoch ~= epoch and floor_epoch ~= epoch) or known_version <= tonumber(row_version) then
    note_version(row_version)
    local fields = {'version', row_version, 'balance', ARGV[row + 2], 'loaded_at', read_ms}
    if loaded_epoch ~= epoch then fields[7], fields[8] = 'loaded_epoch', epoch end
    if attributes ~= ARGV[row + 3] then fields[#fields + 1], fields[#fields + 2] = 'facts', ARGV[row + 3] end
    return fields
  end
  return {}
end

-- Everything is read before the first write: if an account is another program's by now, all must stay as it was, or the
-- events of the others would leave and their weight stay.
-- One HMGET, one HSET for each: of ten commands per event this script once had, these are left.
local changes = {}
for i = 3, #KEYS do
  local account = KEYS[i]
  local known = redis.call('HMGET', account, 'version', 'loaded_epoch', 'floor_epoch', 'facts', 'held', 'unposted')
  local fields, is_old = news(account, row_of[account], known[1], known[2], known[3], known[4])
  local unposted, weight, whole = number(known[6]), weights[account] or 0, true
  if weight > 0 then
    whole = math.abs(unposted) < MAX_EXACT
    if whole then fields[#fields + 1], fields[#fields + 2] = 'unposted', string.format('%.0f', unposted - weight) end
  end
  changes[i] = {fields, whole or weight, tonumber(known[5] or 0) == 0 and unposted == weight, is_old}
end

-- They are all there: nothing came between.
local removed = #leaving > 0 and redis.call('XDEL', outbox, unpack(leaving)) or 0
-- Nothing was cached of another run before the first.
if ledger ~= '' then redis.call('HSETNX', meta, 'ledger', ledger) end
if highest_seq > settled_before then redis.call('HSET', meta, 'settled', string.format('%.0f', highest_seq)) end
for i = 3, #KEYS do
  local account, fields, whole, idle, is_old = KEYS[i], unpack(changes[i], 1, 4)
  if is_old then redis.call('HDEL', account, 'loaded_epoch') end
  if whole ~= true then take_off(account, whole) end
  if #fields > 0 then redis.call('HSET', account, unpack(fields)) end
  -- An account with nothing held and nothing unposted has no counters to keep: let it expire after a while.
  if idle then redis.call('EXPIRE', account, idle_seconds) end
end
if highest_version > version_before then redis.call('HSET', meta, 'version', string.format('%.0f', highest_version)) end
return {removed, gone, mismatched}
