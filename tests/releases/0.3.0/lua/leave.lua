#!lua flags=allow-oom
--[[
leave: stop draining, but only if nothing is left to drain.

Why a script: an event filed between the last look and letting go would find
the doorbell set and not ring, and no drainer would come.

KEYS[1] drainer   string  the owner's name
KEYS[2] doorbell  string
KEYS[3] outbox    stream

ARGV[1] owner

Returns {outcome}
  LEFT       lease and doorbell are gone
  NOT_EMPTY  go on draining
  LOST       the lease ran out, and perhaps another drainer has it
]]
local drainer, doorbell, outbox = KEYS[1], KEYS[2], KEYS[3]
local owner = ARGV[1]
if redis.call('GET', drainer) ~= owner then return {'LOST'} end
if redis.call('XLEN', outbox) > 0 then return {'NOT_EMPTY'} end
redis.call('DEL', drainer, doorbell)
return {'LEFT'}
