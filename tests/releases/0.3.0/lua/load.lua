#!lua
--[[
load: cache one PostgreSQL row in the account's hash.

Why a script: between NOT_LOADED and now the account may have been written by a
caller that read later. The row is refused if the reading began too long ago,
in another epoch, from another run of PostgreSQL than the one known here, or brought
an older version. `held` and `unposted` are never touched: they belong to holds and
events, not to PostgreSQL.

KEYS[1] meta     hash  run_id, epoch, seq; ledger, version: PostgreSQL's run, and the highest version seen of it
KEYS[2] account  hash  user or token

ARGV[1] began_ms      this server's clock when the reading began, as NOT_LOADED handed it out
ARGV[2] epoch         likewise; the epoch of loading
ARGV[3] idle_seconds
ARGV[4] version       of the row
ARGV[5] balance       of the row, in quota
ARGV[6] attributes    what else a reservation must know of it (commands/accounts.py); the field is called facts
ARGV[7] ledger        the run of PostgreSQL that the row is of; '': not known

Returns {outcome}
  LOADED        the row is cached
  OLDER         a newer version was there already
  TOO_LATE      the reading began more than 5 seconds ago, or this server's clock was set
  OTHER_EPOCH   the server was restarted, restored or promoted meanwhile
  OTHER_LEDGER  PostgreSQL is another run than before (new_ledger.lua); or none is known here, and the row does not
                say of which it is: if PostgreSQL is restored next, it would count as the new run's
]]
local meta, account = KEYS[1], KEYS[2]
local began_ms, epoch, idle_seconds, version = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local ledger = ARGV[7]
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
-- An account with nothing held and nothing unposted has no counters to keep: let it expire after a while.
local function expire_if_idle(account, idle_seconds)
  local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
  if tonumber(held or 0) == 0 and tonumber(unposted or 0) == 0 then
    redis.call('EXPIRE', account, idle_seconds)
    return true
  end
  return false
end
local _, current_epoch = fence(meta)
if current_epoch ~= epoch then return {'OTHER_EPOCH'} end
if math.abs(now_ms - began_ms) > 5000 then return {'TOO_LATE'} end
local known_ledger, highest = unpack(redis.call('HMGET', meta, 'ledger', 'version'))
if ledger ~= '' then
  if known_ledger and known_ledger ~= ledger then return {'OTHER_LEDGER'} end
  if not known_ledger then redis.call('HSET', meta, 'ledger', ledger) end
elseif not known_ledger then
  return {'OTHER_LEDGER'}
end
local known = redis.call('HMGET', account, 'version', 'loaded_epoch', 'floor_epoch')
-- floor_epoch: the account is not loaded, but a settlement said that less than this version is old.
local comparable = known[2] == epoch or known[3] == epoch
if comparable and tonumber(known[1]) > tonumber(version) then return {'OLDER'} end

if tonumber(version) > tonumber(highest or 0) then redis.call('HSET', meta, 'version', version) end
redis.call('HSET', account, 'version', version, 'loaded_at', ARGV[1], 'loaded_epoch', epoch,
  'balance', ARGV[5], 'facts', ARGV[6])
expire_if_idle(account, idle_seconds)
return {'LOADED'}
