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
-- A hold is one string: "<state> <user_id> <token_id> <quota> <fingerprint>". Words behind those are a later release's
-- and are ignored here. A hold whose quota was changed since has the word asked:<quota that was asked for first>: in
-- place of the fingerprint, which only a consumed one has, because release 0.1.0 reads no hold of six words. An open
-- hold of a gateway that named the request by a key of its own ends with key:<that key, in percent-encoding>.
-- States: held, then one of consumed, released, expired (a tombstone that answers repeats for a while).
local function read_hold(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  local state, user_id, token_id, quota, fingerprint = string.match(packed, '^(%a+) (%d+) (%d+) (%d+) (%S+)')
  return state, user_id, token_id, quota, fingerprint, string.match(packed, ' (asked:%d+)'),
    string.match(packed, ' (key:%S+)')
end

-- What the request asked for first.
local function asked_first(quota, asked)
  return asked and string.sub(asked, 7) or quota
end

local function bury_hold(key, state, user_id, token_id, quota, fingerprint, asked, tombstone_ms)
  local words = {state, user_id, token_id, quota, fingerprint == '-' and asked or fingerprint}
  if fingerprint ~= '-' then words[6] = asked end
  redis.call('SET', key, table.concat(words, ' '), 'PX', tombstone_ms)
end
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
