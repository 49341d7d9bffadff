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
ARGV[4] most    holds and events that may be read

Returns {held, unposted, sum of open holds, sum of weights, TTL in seconds (below 0: none)},
or nothing if the shard has more than `most`
]]
local account, due, outbox = KEYS[1], KEYS[2], KEYS[3]
local prefix, which, id, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
--@include hold
--@include entry
--@include explained
local holds, weights = explained(prefix, due, outbox, which, id, most)
if not holds then return {} end
local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
return {tonumber(held) or 0, tonumber(unposted) or 0, holds, weights, redis.call('TTL', account)}
