#!lua flags=allow-oom
--[[
recount: set one account's counters to what explains them, at one moment.

Why a script: holds and events come and go; a sum is right only if nothing happens
between adding up and writing. It reads every open hold and event of the shard, so it
is asked only about an account that two looks have found wrong.
Safe to repeat. Reads hold keys that are not in KEYS (they are in the same slot, by the hash tag).

KEYS[1] account  hash    user or token
KEYS[2] due      zset    open holds by expiry
KEYS[3] outbox   stream

ARGV[1] prefix        of this shard's keys
ARGV[2] which         user | token
ARGV[3] id            of the user or token
ARGV[4] idle_seconds
ARGV[5] most          holds and events that may be read

Returns {held before, unposted before, held, unposted, TTL}, the last in seconds if the account would have
vanished with what it explains, else below 0; or nothing if the shard has more than `most`
]]
local account, due, outbox = KEYS[1], KEYS[2], KEYS[3]
local prefix, which, id, idle_seconds, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
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
-- What outbox.lua wrote of an event; empty words and a weight of 0 for what it did not write. Words and fields behind
-- those it knows are a later release's and are ignored.
-- replies.parse_entry reads exactly the same: a script that saw a weight where the worker saw none
-- would keep the entry for ever.
local function read_entry(entry)
  local kind, request_id, user_id, token_id, weight, held, filed_ms, more
  if entry[2][1] == 'event' and #entry[2] >= 4 and entry[2][3] == 'payload' then
    kind, request_id, user_id, token_id, weight, held, filed_ms, more =
      string.match(entry[2][2], '^(%a+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+)(.*)$')
  end
  if not kind or (more ~= '' and string.sub(more, 1, 1) ~= ' ') or math.max(#user_id, #token_id, #weight, #held, #filed_ms) > 18 then return '', '', '', '', 0 end
  return kind, request_id, user_id, token_id, tonumber(weight)
end
-- Needs hold and entry. What an account's counters should be: the sum of its open holds, and of its events' weights.
-- Nothing if the shard has more than `most` of both: reading them would keep all other clients waiting.
local function explained(prefix, due, outbox, which, id, most)
  if redis.call('ZCARD', due) + redis.call('XLEN', outbox) > tonumber(most) then return nil end
  local holds, weights = 0, 0
  for _, request_id in ipairs(redis.call('ZRANGE', due, 0, -1)) do
    local state, user_id, token_id, quota = read_hold(prefix .. 'hold:' .. request_id)
    if state == 'held' and (which == 'user' and user_id or token_id) == id then holds = holds + tonumber(quota) end
  end
  for _, entry in ipairs(redis.call('XRANGE', outbox, '-', '+')) do
    local _, _, user_id, token_id, weight = read_entry(entry)
    if (which == 'user' and user_id or token_id) == id then weights = weights + weight end
  end
  return holds, weights
end
-- An account with nothing held and nothing unposted has no counters to keep: let it expire after a while.
local function expire_if_idle(account, idle_seconds)
  local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
  if tonumber(held or 0) == 0 and tonumber(unposted or 0) == 0 then
    redis.call('EXPIRE', account, idle_seconds)
    return true
  end
  return false
end
local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
local holds, weights = explained(prefix, due, outbox, which, id, most)
if not holds then return {} end
local ttl = redis.call('TTL', account)
local idle = holds == 0 and weights == 0
redis.call('HSET', account, 'held', string.format('%.0f', holds), 'unposted', string.format('%.0f', weights))
if not expire_if_idle(account, idle_seconds) then redis.call('PERSIST', account) end
return {tonumber(held) or 0, tonumber(unposted) or 0, holds, weights, idle and -1 or ttl}
