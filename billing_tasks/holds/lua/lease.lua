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
--@include fence
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
