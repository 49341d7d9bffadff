-- A hold is one string: "<state> <user_id> <token_id> <quota> <fingerprint>". Words behind those are a later release's
-- and are ignored here. A hold whose quota was changed since has the word asked:<quota that was asked for first>: in
-- place of the fingerprint, which only a consumed one has, because release 0.1.0 reads no hold of six words. Of an open
-- hold there may follow price:<what was asked of which price list, as a query> and key:<the gateway's own key of the
-- request, in percent-encoding>; the scripts keep them as they are.
-- States: held, then one of consumed, released, expired (a tombstone that answers repeats for a while).
local function read_hold(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  local state, user_id, token_id, quota, fingerprint, more =
    string.match(packed, '^(%a+) (%d+) (%d+) (%d+) (%S+) ?(.*)$')
  if not state then return nil end
  local asked = string.match(fingerprint, '^asked:%d+$') or string.match(more, '^asked:%d+')
  return state, user_id, token_id, quota, fingerprint, asked, more ~= '' and more or nil
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
