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
