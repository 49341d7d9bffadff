#!lua flags=allow-oom
--[[
settled: the ledger has committed these events; take them out of the outbox.

Why a script: an event and its weight in `unposted` leave together, and the
balance that PostgreSQL returned is written no later than that, so that quota is
counted by the balance or by `unposted` at every moment.
Owner and weight are read from the outbox entry itself, never from ARGV: a
worker that mixes up its batch can't move anybody's quota.
Safe to repeat: an entry that is gone changes nothing.

KEYS[1] meta       hash    run_id, epoch, seq
KEYS[2] outbox     stream
KEYS[3...] accounts, users and tokens, each once

ARGV[1] prefix         of this shard's keys
ARGV[2] read_ms        this server's clock before the ledger was asked
ARGV[3] epoch          likewise
ARGV[4] idle_seconds
ARGV[5] events         how many; then for each: entry id, request_id, kind
ARGV[...] then for each row: key number in KEYS, version, count of values, field, value ...

Returns {removed, gone, mismatched}
]]
local meta, outbox = KEYS[1], KEYS[2]
local prefix, read_ms, epoch, idle_seconds, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
--@include fence
--@include idle
local current_epoch = fence(meta)
local same_epoch = current_epoch == epoch
local declared = {}
for i = 3, #KEYS do declared[KEYS[i]] = true end

local at = 6 + events * 3
while at < #ARGV do -- the last one is for fence
  local account, version, values = KEYS[tonumber(ARGV[at])], ARGV[at + 1], tonumber(ARGV[at + 2])
  local known = redis.call('HMGET', account, 'version', 'loaded_epoch', 'floor_epoch')
  local known_version = tonumber(known[1] or 0)
  if not same_epoch then
    -- The rows were read in another life of this server, so they may be old by now; but whoever loads the
    -- account in this life must not bring less than them, or the charge would count nowhere.
    local trusted = known[2] == current_epoch or known[3] == current_epoch
    if not trusted or known_version < tonumber(version) then
      redis.call('HDEL', account, 'loaded_epoch')
      redis.call('HSET', account, 'version', version, 'floor_epoch', current_epoch)
    end
  elseif (known[2] ~= epoch and known[3] ~= epoch) or known_version <= tonumber(version) then
    redis.call('HSET', account, 'version', version, 'loaded_at', read_ms, 'loaded_epoch', epoch,
      unpack(ARGV, at + 3, at + 2 + values))
  end
  at = at + 3 + values
end

-- From here on a Lua number skips integers.
local MAX_EXACT = 9007199254740992
local function take_off(account, weight)
  if weight > 0 then redis.call('HINCRBY', account, 'unposted', string.format('-%.0f', weight)) end
end

local removed, gone, mismatched, weights = 0, 0, 0, {}
for i = 0, events - 1 do
  local id, request_id, kind = ARGV[6 + i * 3], ARGV[7 + i * 3], ARGV[8 + i * 3]
  local entry = redis.call('XRANGE', outbox, id, id)[1]
  if not entry then
    gone = gone + 1
  else
    local f = {}
    for j = 1, #entry[2], 2 do f[entry[2][j]] = entry[2][j + 1] end
    local user, token = prefix .. 'user:' .. (f.user_id or ''), prefix .. 'token:' .. (f.token_id or '')
    local weight = tonumber(f.weight) or 0
    local same = (f.request_id or '') == request_id and (f.kind or '') == kind
    if not same or (weight > 0 and not (declared[user] and declared[token])) then
      mismatched = mismatched + 1
    elseif redis.call('XDEL', outbox, id) == 1 then
      removed = removed + 1
      if weight > 0 then
        for _, account in ipairs({user, token}) do
          local sum = (weights[account] or 0) + weight
          if sum >= MAX_EXACT then
            take_off(account, weights[account] or 0)
            sum = weight
          end
          weights[account] = sum
        end
      end
    end
  end
end
for account, weight in pairs(weights) do take_off(account, weight) end
for i = 3, #KEYS do expire_if_idle(KEYS[i], idle_seconds) end
return {removed, gone, mismatched}
