#!lua flags=allow-oom
--[[
lease: become the shard's only drainer, or stay it for another while.

While a drainer is at work, the doorbell is kept set: consumes need not ring, because
`leave` looks into the outbox once more before it lets go of both.

KEYS[1] drainer   string  the owner's name
KEYS[2] doorbell  string
KEYS[3] meta      hash    run_id, epoch, seq

ARGV[1] owner
ARGV[2] lease_ms

Returns {outcome, now_ms, epoch}
  ACQUIRED  the lease was free
  RENEWED   it was this drainer's
  TAKEN     another drainer is at work
]]
local drainer, doorbell, meta = KEYS[1], KEYS[2], KEYS[3]
local owner, lease_ms = ARGV[1], ARGV[2]
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
local epoch = fence(meta)
local current = redis.call('GET', drainer)
if current and current ~= owner then return {'TAKEN', now_ms, epoch} end
redis.call('SET', drainer, owner, 'PX', lease_ms)
redis.call('SET', doorbell, '1', 'PX', lease_ms)
return {current and 'RENEWED' or 'ACQUIRED', now_ms, epoch}
