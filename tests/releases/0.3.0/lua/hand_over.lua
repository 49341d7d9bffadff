#!lua flags=allow-oom
--[[
hand_over: stop draining although events are left; the next drainer was or will be called.

The doorbell stays set for as long as the next drainer is expected to take, so
that consumes don't call more of them meanwhile.

KEYS[1] drainer   string  the owner's name
KEYS[2] doorbell  string

ARGV[1] owner
ARGV[2] quiet_ms  how long consumes shall not ring

Returns {outcome}
  LEFT  the lease is gone
  LOST  the lease was not this drainer's any more
]]
local drainer, doorbell = KEYS[1], KEYS[2]
local owner, quiet_ms = ARGV[1], ARGV[2]
if redis.call('GET', drainer) ~= owner then return {'LOST'} end
redis.call('DEL', drainer)
redis.call('SET', doorbell, '1', 'PX', quiet_ms)
return {'LEFT'}
