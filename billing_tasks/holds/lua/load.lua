#!lua
--[[
load: cache one PostgreSQL row in the account's hash.

Why a script: between NOT_LOADED and now the account may have been written by a
caller that read later. The row is refused if the reading began too long ago,
in another epoch, or brought an older version. `held` and `unposted` are never
touched: they belong to holds and events, not to PostgreSQL.

KEYS[1] meta     hash  run_id, epoch, seq
KEYS[2] account  hash  user or token

ARGV[1] began_ms      this server's clock when the reading began, as NOT_LOADED handed it out
ARGV[2] epoch         likewise
ARGV[3] idle_seconds
ARGV[4] version       of the row
ARGV[5] balance       of the row, in quota
ARGV[6] attributes    what else a reservation must know of it (commands/accounts.py); the field is called facts

Returns {outcome}
  LOADED       the row is cached
  OLDER        a newer version was there already
  TOO_LATE     the reading began more than 5 seconds ago
  OTHER_EPOCH  the server was restarted, restored or promoted meanwhile
]]
local meta, account = KEYS[1], KEYS[2]
local began_ms, epoch, idle_seconds, version = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
--@include fence
--@include idle
if fence(meta) ~= epoch then return {'OTHER_EPOCH'} end
if now_ms - began_ms > 5000 then return {'TOO_LATE'} end
local known = redis.call('HMGET', account, 'version', 'loaded_epoch', 'floor_epoch')
-- floor_epoch: the account is not loaded, but a settlement said that less than this version is old.
local comparable = known[2] == epoch or known[3] == epoch
if comparable and tonumber(known[1]) > tonumber(version) then return {'OLDER'} end

redis.call('HSET', account, 'version', version, 'loaded_at', began_ms, 'loaded_epoch', epoch,
  'balance', ARGV[5], 'facts', ARGV[6])
expire_if_idle(account, idle_seconds)
return {'LOADED'}
