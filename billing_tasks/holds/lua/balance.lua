#!lua
--[[
balance: what one account has available, without changing it.

KEYS[1] meta     hash  run_id, epoch, seq; version
KEYS[2] account  hash  user or token

Returns {outcome, balance, held, unposted, age_ms, now_ms, epoch, version}
  LOADED      balance is PostgreSQL's, cached age_ms ago
  NOT_LOADED  not cached, or in an older epoch
epoch is that of loading, version the highest of an account that was seen of PostgreSQL
]]
local meta, account = KEYS[1], KEYS[2]
--@include fence
local _, epoch = fence(meta)
local a = redis.call('HMGET', account, 'balance', 'held', 'unposted', 'loaded_at', 'loaded_epoch')
local held, unposted = tonumber(a[2] or 0), tonumber(a[3] or 0)
local version = tonumber(redis.call('HGET', meta, 'version') or 0)
if a[5] ~= epoch then return {'NOT_LOADED', 0, held, unposted, 0, now_ms, epoch, version} end
return {'LOADED', tonumber(a[1]), held, unposted, now_ms - a[4], now_ms, epoch, version}
