#!lua
--[[
load: cache one PostgreSQL row in the account's hash.

Why a script: between NOT_LOADED and now the account may have been written by a
caller that read later. The row is refused if the reading began too long ago,
in another epoch, from another run of PostgreSQL than the one known here, or brought
an older version. `held` and `unposted` are never touched: they belong to holds and
events, not to PostgreSQL.

KEYS[1] meta     hash  run_id, epoch, seq; ledger, version: PostgreSQL's run, and the highest version seen of it
KEYS[2] account  hash  user or token

ARGV[1] began_ms      this server's clock when the reading began, as NOT_LOADED handed it out
ARGV[2] epoch         likewise; the epoch of loading
ARGV[3] idle_seconds
ARGV[4] version       of the row
ARGV[5] balance       of the row, in quota
ARGV[6] attributes    what else a reservation must know of it (commands/accounts.py); the field is called facts
ARGV[7] ledger        the run of PostgreSQL that the row is of; '': not known

Returns {outcome}
  LOADED        the row is cached
  OLDER         a newer version was there already
  TOO_LATE      the reading began more than 5 seconds ago, or this server's clock was set
  OTHER_EPOCH   the server was restarted, restored or promoted meanwhile
  OTHER_LEDGER  PostgreSQL is another run than before (new_ledger.lua); or none is known here, and the row does not
                say of which it is: if PostgreSQL is restored next, it would count as the new run's
]]
local meta, account = KEYS[1], KEYS[2]
local began_ms, epoch, idle_seconds, version = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local ledger = ARGV[7]
--@include fence
--@include idle
local _, current_epoch = fence(meta)
if current_epoch ~= epoch then return {'OTHER_EPOCH'} end
if math.abs(now_ms - began_ms) > 5000 then return {'TOO_LATE'} end
local known_ledger, highest = unpack(redis.call('HMGET', meta, 'ledger', 'version'))
if ledger ~= '' then
  if known_ledger and known_ledger ~= ledger then return {'OTHER_LEDGER'} end
  if not known_ledger then redis.call('HSET', meta, 'ledger', ledger) end
elseif not known_ledger then
  return {'OTHER_LEDGER'}
end
local known = redis.call('HMGET', account, 'version', 'loaded_epoch', 'floor_epoch')
-- floor_epoch: the account is not loaded, but a settlement said that less than this version is old.
local comparable = known[2] == epoch or known[3] == epoch
if comparable and tonumber(known[1]) > tonumber(version) then return {'OLDER'} end

if tonumber(version) > tonumber(highest or 0) then redis.call('HSET', meta, 'version', version) end
redis.call('HSET', account, 'version', version, 'loaded_at', ARGV[1], 'loaded_epoch', epoch,
  'balance', ARGV[5], 'facts', ARGV[6])
expire_if_idle(account, idle_seconds)
return {'LOADED'}
