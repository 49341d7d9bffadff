#!lua flags=allow-oom
--[[
renew: keep an open hold for another ttl, because the stream is still running.

Why a script: a hold that was closed meanwhile must not reappear in `due`.
Safe to repeat. Never shortens a hold.

KEYS[1] hold  string  the hold to keep
KEYS[2] due   zset    open holds by expiry (milliseconds, this server's clock)

ARGV[1] request_id
ARGV[2] ttl_ms

Returns {outcome, expires_at_ms}
  RENEWED      open until expires_at_ms at least
  HOLD_CLOSED  consumed, released or expired
  NO_HOLD      no trace of a hold
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
local state = read_hold(hold)
if not state then return {'NO_HOLD', 0} end
if state ~= 'held' then return {'HOLD_CLOSED', 0} end

local time = redis.call('TIME')
local expires_at = time[1] * 1000 + math.floor(time[2] / 1000) + ttl_ms
redis.call('ZADD', due, 'GT', expires_at, request_id)
return {'RENEWED', tonumber(redis.call('ZSCORE', due, request_id))}
