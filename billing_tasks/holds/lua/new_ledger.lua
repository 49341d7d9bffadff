#!lua flags=allow-oom
--[[
new_ledger: have every account of the shard loaded again, because PostgreSQL is another run than before.

A restart, a failover or a restore may have brought back older accounts. What is cached may then be newer than
the truth, and by its version nothing from PostgreSQL would ever replace it. The epoch of loading moves on: all accounts
count as not loaded, and a row that was read before this is not written any more. Holds and events stay as they are.
Safe to repeat.

KEYS[1] meta  hash  run_id, epoch, seq; ledger, version, loads

ARGV[1] ledger  the run of PostgreSQL that answers now
ARGV[2] behind  turn also if it is the run known here, if a version as high as this one was seen; '': don't

Returns {outcome}
  TURNED  what was cached counts no more
  KNOWN   nothing is new
]]
local meta = KEYS[1]
local ledger, behind = ARGV[1], tonumber(ARGV[2]) -- '' is nil
--@include fence
fence(meta)
local known, highest = unpack(redis.call('HMGET', meta, 'ledger', 'version'))
redis.call('HSET', meta, 'ledger', ledger)
-- Where no run is known yet, nothing was cached of another one.
local behind_now = behind and tonumber(highest or 0) >= behind
if (not known or known == ledger) and not behind_now then return {'KNOWN'} end
redis.call('HINCRBY', meta, 'loads', 1)
redis.call('HDEL', meta, 'version')
return {'TURNED'}
