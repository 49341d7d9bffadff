#!lua flags=allow-oom
--[[
reschedule: have an open hold that is in no list of due holds expire after a ttl.

Why a script: the hold may be closed in this very moment, and must not be listed then.
Safe to repeat.

KEYS[1] hold  string
KEYS[2] due   zset    open holds by expiry (milliseconds, this server's clock)

ARGV[1] request_id
ARGV[2] ttl_ms

Returns {outcome}
  RESCHEDULED  it expires in ttl_ms, unless it is renewed or closed
  CHANGED      it is listed, or not open any more
]]
local hold, due = KEYS[1], KEYS[2]
local request_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
-- A hold is one string: "<state> <user_id> <token_id> <quota> <fingerprint>". Words behind those are a later
-- release's and are ignored here.
-- States: held, then one of consumed, released, expired (a tombstone that answers repeats for a while).
local function read_hold(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  return string.match(packed, '^(%a+) (%d+) (%d+) (%d+) (%S+)')
end

local function bury_hold(key, state, user_id, token_id, quota, fingerprint, tombstone_ms)
  redis.call('SET', key, table.concat({state, user_id, token_id, quota, fingerprint}, ' '), 'PX', tombstone_ms)
end
if read_hold(hold) ~= 'held' or redis.call('ZSCORE', due, request_id) then return {'CHANGED'} end
local time = redis.call('TIME')
redis.call('ZADD', due, time[1] * 1000 + math.floor(time[2] / 1000) + ttl_ms, request_id)
return {'RESCHEDULED'}
