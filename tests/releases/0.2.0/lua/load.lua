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
-- The server's clock, and the shard's epoch. Included by every script that trusts what it reads.
-- An epoch is one run of one server: when its run_id is not the one in `meta`, this server was
-- restarted, restored or promoted, and what it remembers may be old. The epoch then moves on, the
-- outbox numbering starts again, and accounts cached in older epochs count as not loaded.
-- The last word of ARGV is the run_id that the caller's connection was told when it was opened. A
-- connection does not outlive its server, so that word is right if it is the one in `meta`; in any
-- other case the server is asked (INFO takes 8 us).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function fence(meta)
  local known_run_id, epoch = unpack(redis.call('HMGET', meta, 'run_id', 'epoch'))
  if known_run_id == ARGV[#ARGV] then return epoch end
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  if known_run_id == run_id then return epoch end
  local now_us = time[1] * 1000000 + time[2]
  local before = epoch
  epoch = string.format('%.0f', math.max((tonumber(epoch) or 0) + 1, now_us))
  -- What this server remembers of the epoch before, so that the ledger can tell how much of it is missing.
  local seq = redis.call('HGET', meta, 'seq')
  if before then redis.call('HSET', meta, 'before_epoch', before, 'before_seq', seq or 0) end
  redis.call('HSET', meta, 'run_id', run_id, 'epoch', epoch, 'seq', 0)
  return epoch
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
