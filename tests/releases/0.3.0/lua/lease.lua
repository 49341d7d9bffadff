#!lua flags=allow-oom
--[[
lease: become the shard's only drainer, or stay it for another while.

While a drainer is at work, the doorbell is kept set: consumes need not ring, because
`leave` looks into the outbox once more before it lets go of both.

KEYS[1] drainer   string  the owner's name
KEYS[2] doorbell  string
KEYS[3] meta      hash    run_id, epoch, seq; ledger, version: PostgreSQL's run, and the highest version seen of it;
                          rings: calls that no drainer has answered; retry_at: when a drainer that failed comes back

ARGV[1] owner
ARGV[2] lease_ms

Returns {outcome, now_ms, epoch, ledger, version, seq}; the epoch is that of loading
  ACQUIRED  the lease was free
  RENEWED   it was this drainer's
  TAKEN     another drainer is at work
]]
local drainer, doorbell, meta = KEYS[1], KEYS[2], KEYS[3]
local owner, lease_ms = ARGV[1], ARGV[2]
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
local _, epoch = fence(meta)
local ledger, version, seq = unpack(redis.call('HMGET', meta, 'ledger', 'version', 'seq'))
local function answer(outcome)
  return {outcome, now_ms, epoch, ledger or '', tonumber(version or 0), tonumber(seq or 0)}
end

local current = redis.call('GET', drainer)
-- A lease that runs longer than any is of a clock that had run ahead, or of a stranger: nobody is at work.
local left_ms = redis.call('PTTL', drainer)
if current and current ~= owner and left_ms >= 0 and left_ms <= tonumber(lease_ms) * 2 then return answer('TAKEN') end
redis.call('SET', drainer, owner, 'PX', lease_ms)
redis.call('SET', doorbell, '1', 'PX', lease_ms)
redis.call('HDEL', meta, 'rings', 'retry_at')
return answer(current == owner and 'RENEWED' or 'ACQUIRED')
