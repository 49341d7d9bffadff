#!lua flags=allow-oom
--[[
new_ledger: have every account of the shard loaded again, because PostgreSQL is another run than before.

A restart, a failover or a restore may have brought back older accounts. What is cached may then be newer than
the truth, and by its version nothing from PostgreSQL would ever replace it. The epoch of loading moves on: all accounts
count as not loaded, and a row that was read before this is not written any more. Holds and events stay as they are.
Safe to repeat.

KEYS[1] meta  hash  run_id, epoch, seq; ledger, version, loads

ARGV[1] ledger  the run of PostgreSQL that answers now
ARGV[2] behind  turn also if it is the run known here, if a version as high as this one was seen; '': don't

Returns {outcome}
  TURNED  what was cached counts no more
  KNOWN   nothing is new
]]
local meta = KEYS[1]
local ledger, behind = ARGV[1], tonumber(ARGV[2]) -- '' is nil
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
fence(meta)
local known, highest = unpack(redis.call('HMGET', meta, 'ledger', 'version'))
redis.call('HSET', meta, 'ledger', ledger)
-- Where no run is known yet, nothing was cached of another one.
local behind_now = behind and tonumber(highest or 0) >= behind
if (not known or known == ledger) and not behind_now then return {'KNOWN'} end
redis.call('HINCRBY', meta, 'loads', 1)
redis.call('HDEL', meta, 'version')
return {'TURNED'}
