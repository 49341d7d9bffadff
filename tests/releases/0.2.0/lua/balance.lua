#!lua
--[[
balance: what one account has available, without changing it.

KEYS[1] meta     hash  run_id, epoch, seq
KEYS[2] account  hash  user or token

Returns {outcome, balance, held, unposted, age_ms, now_ms, epoch}
  LOADED      balance is PostgreSQL's, cached age_ms ago
  NOT_LOADED  not cached, or in an older epoch
]]
local meta, account = KEYS[1], KEYS[2]
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
local epoch = fence(meta)
local a = redis.call('HMGET', account, 'balance', 'held', 'unposted', 'loaded_at', 'loaded_epoch')
if a[5] ~= epoch then return {'NOT_LOADED', 0, tonumber(a[2] or 0), tonumber(a[3] or 0), 0, now_ms, epoch} end
return {'LOADED', tonumber(a[1]), tonumber(a[2] or 0), tonumber(a[3] or 0), now_ms - a[4], now_ms, epoch}
