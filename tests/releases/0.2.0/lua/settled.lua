#!lua flags=allow-oom
--[[
settled: the ledger has committed these events; take them out of the outbox.

Why a script: an event and its weight in `unposted` leave together, and the
balance that PostgreSQL returned is written no later than that, so that quota is
counted by the balance or by `unposted` at every moment.
Owner and weight are read from the outbox entry itself, never from ARGV: a
worker that mixes up its batch can't move another user's quota.
Safe to repeat: an entry that is gone changes nothing.

KEYS[1] meta       hash    run_id, epoch, seq
KEYS[2] outbox     stream
KEYS[3...] accounts, users and tokens, each once

ARGV[1] prefix         of this shard's keys
ARGV[2] read_ms        this server's clock before the ledger was asked
ARGV[3] epoch          likewise
ARGV[4] idle_seconds
ARGV[5] events         how many; then for each: entry id, and its event as the caller read it ('' if no script wrote it)
ARGV[...] then for each row: key number in KEYS, version, balance, attributes (commands/accounts.py)

Returns {removed, gone, mismatched}
]]
local meta, outbox = KEYS[1], KEYS[2]
local prefix, read_ms, epoch, idle_seconds, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
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
local current_epoch = fence(meta)
local same_epoch = current_epoch == epoch
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

local gone, mismatched, leaving = 0, 0, {}
for at = 6, 4 + events * 2, 2 do
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
-- They are all there: nothing came between.
local removed = #leaving > 0 and redis.call('XDEL', outbox, unpack(leaving)) or 0

-- Where in ARGV the row of an account begins. The last word is for fence.
local row_of = {}
for at = 6 + events * 2, #ARGV - 4, 4 do row_of[KEYS[tonumber(ARGV[at])]] = at end

-- The fields of a cached row that this row makes better, for HSET; to write those that stay costs more than a look.
local function news(account, row, version, loaded_epoch, floor_epoch, attributes)
  if not row then return {} end
  local row_version, known_version = ARGV[row + 1], tonumber(version or 0)
  if not same_epoch then
    -- The row was read in another epoch, so it may be old by now; but a caller that loads the account
    -- in this epoch must not bring less than it, or the charge would count nowhere.
    local trusted = loaded_epoch == current_epoch or floor_epoch == current_epoch
    if not trusted or known_version < tonumber(row_version) then
      redis.call('HDEL', account, 'loaded_epoch')
      return {'version', row_version, 'floor_epoch', current_epoch}
    end
  elseif (loaded_epoch ~= epoch and floor_epoch ~= epoch) or known_version <= tonumber(row_version) then
    local fields = {'version', row_version, 'balance', ARGV[row + 2], 'loaded_at', read_ms}
    if loaded_epoch ~= epoch then fields[7], fields[8] = 'loaded_epoch', epoch end
    if attributes ~= ARGV[row + 3] then fields[#fields + 1], fields[#fields + 2] = 'facts', ARGV[row + 3] end
    return fields
  end
  return {}
end

-- One HMGET, one HSET for each: of ten commands per event this script once had, these are left.
for i = 3, #KEYS do
  local account = KEYS[i]
  local known = redis.call('HMGET', account, 'version', 'loaded_epoch', 'floor_epoch', 'facts', 'held', 'unposted')
  local fields = news(account, row_of[account], known[1], known[2], known[3], known[4])
  local unposted, weight = tonumber(known[6] or 0), weights[account] or 0
  if weight > 0 then
    if math.abs(unposted) < MAX_EXACT then
      fields[#fields + 1], fields[#fields + 2] = 'unposted', string.format('%.0f', unposted - weight)
    else
      take_off(account, weight)
    end
  end
  if #fields > 0 then redis.call('HSET', account, unpack(fields)) end
  -- An account with nothing held and nothing unposted has no counters to keep: let it expire after a while.
  if tonumber(known[5] or 0) == 0 and unposted == weight then redis.call('EXPIRE', account, idle_seconds) end
end
return {removed, gone, mismatched}
