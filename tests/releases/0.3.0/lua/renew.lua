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
local state = read_hold(hold)
if not state then return {'NO_HOLD', 0} end
if state ~= 'held' then return {'HOLD_CLOSED', 0} end

local time = redis.call('TIME')
local expires_at = time[1] * 1000 + math.floor(time[2] / 1000) + ttl_ms
redis.call('ZADD', due, 'GT', expires_at, request_id)
return {'RENEWED', tonumber(redis.call('ZSCORE', due, request_id))}
