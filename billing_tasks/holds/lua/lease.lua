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
--@include fence
local epoch = fence(meta)
local current = redis.call('GET', drainer)
if current and current ~= owner then return {'TAKEN', now_ms, epoch} end
redis.call('SET', drainer, owner, 'PX', lease_ms)
redis.call('SET', doorbell, '1', 'PX', lease_ms)
return {current and 'RENEWED' or 'ACQUIRED', now_ms, epoch}
