#!lua flags=no-writes
--[[
audit: one account's counters beside what explains them, at one moment.

Why a script: holds and events come and go; only a look that nothing can
interrupt may call a difference a fault. It reads every open hold and event of
the shard, so it is asked only about accounts that looked wrong from outside.
Reads hold keys that are not in KEYS (they are in the same slot, by the hash tag).

KEYS[1] account  hash    user or token
KEYS[2] due      zset    open holds by expiry
KEYS[3] outbox   stream

ARGV[1] prefix  of this shard's keys
ARGV[2] which   user | token
ARGV[3] id      of the user or token

Returns {held, unposted, sum of open holds, sum of weights}
]]
local account, due, outbox = KEYS[1], KEYS[2], KEYS[3]
local prefix, which, id = ARGV[1], ARGV[2], ARGV[3]
--@include hold
local holds, weights = 0, 0
for _, request_id in ipairs(redis.call('ZRANGE', due, 0, -1)) do
  local state, user_id, token_id, quota = read_hold(prefix .. 'hold:' .. request_id)
  if state == 'held' and (which == 'user' and user_id or token_id) == id then holds = holds + tonumber(quota) end
end
for _, entry in ipairs(redis.call('XRANGE', outbox, '-', '+')) do
  local f = {}
  for j = 1, #entry[2], 2 do f[entry[2][j]] = entry[2][j + 1] end
  if f[which .. '_id'] == id then weights = weights + (tonumber(f.weight) or 0) end
end
local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
return {tonumber(held or 0), tonumber(unposted or 0), holds, weights}
