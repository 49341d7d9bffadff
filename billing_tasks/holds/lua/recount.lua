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
--@include hold
--@include entry
--@include explained
--@include idle
local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
local holds, weights = explained(prefix, due, outbox, which, id, most)
if not holds then return {} end
local ttl = redis.call('TTL', account)
local idle = holds == 0 and weights == 0
redis.call('HSET', account, 'held', string.format('%.0f', holds), 'unposted', string.format('%.0f', weights))
if not expire_if_idle(account, idle_seconds) then redis.call('PERSIST', account) end
return {tonumber(held) or 0, tonumber(unposted) or 0, holds, weights, idle and -1 or ttl}
