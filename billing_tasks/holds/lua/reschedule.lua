#!lua flags=allow-oom
--[[
reschedule: have an open hold expire after a ttl that is in no list of due holds, or is due later than any ttl allows.

Why a script: the hold may be closed in this very moment, and must not be listed then.
Safe to repeat.

KEYS[1] hold  string
KEYS[2] due   zset    open holds by expiry (milliseconds, this server's clock)

ARGV[1] request_id
ARGV[2] ttl_ms
ARGV[3] longest_ms  no hold is due later than this from now, unless the clock was set back since it was made

Returns {outcome}
  RESCHEDULED  it expires in ttl_ms, unless it is renewed or closed
  CHANGED      it is listed in time, or not open any more
]]
local hold, due = KEYS[1], KEYS[2]
local request_id, ttl_ms, longest_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
--@include hold
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expires_at = tonumber(redis.call('ZSCORE', due, request_id) or 'inf')
if read_hold(hold) ~= 'held' then
  redis.call('ZREM', due, request_id) -- nothing open stands behind it
  return {'CHANGED'}
end
if expires_at <= now_ms + longest_ms then return {'CHANGED'} end
redis.call('ZADD', due, now_ms + ttl_ms, request_id)
return {'RESCHEDULED'}
