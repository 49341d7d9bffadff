#!lua flags=allow-oom
--[[
mend: set aside what another program put where scripts keep their own, because it keeps them from working.

A key of another type is renamed to <tag>:strange:<rest of its name>:<milliseconds>, where `verify` names it until a
person deletes it. A field that must be a number and is none is removed; of `meta` the whole key is set aside, because
the numbers of an outbox must not begin again in the same epoch.
Safe to repeat: what is as it should be stays.

KEYS[...] of one shard

Returns the names of the keys that were set aside or lost a field
]]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local TYPES = {
  meta = 'hash', user = 'hash', token = 'hash', hold = 'string', due = 'zset', outbox = 'stream', doorbell = 'string',
  drainer = 'string',
}
local NUMBERS = {
  meta = {'epoch', 'seq', 'settled', 'version', 'loads', 'before_epoch', 'before_seq'},
  user = {'held', 'unposted', 'balance', 'version', 'loaded_at'},
}
NUMBERS.token = NUMBERS.user

local function set_aside(key)
  redis.call('RENAME', key, (string.gsub(key, '}:', '}:strange:', 1)) .. ':' .. string.format('%.0f', now_ms))
end

-- Fields of a hash that must be whole numbers and are none.
local function unreadable(key, names)
  local found, values = {}, redis.call('HMGET', key, unpack(names))
  for at, name in ipairs(names) do
    if values[at] and not string.match(values[at], '^-?%d+$') then found[#found + 1] = name end
  end
  return found
end

local mended = {}
for _, key in ipairs(KEYS) do
  local what = string.match(key, '}:(%a+)')
  local right, found = TYPES[what], redis.call('TYPE', key).ok
  if right and found ~= 'none' then
    local bad = found == right and NUMBERS[what] and unreadable(key, NUMBERS[what]) or {}
    if found ~= right or (what == 'meta' and #bad > 0) then
      set_aside(key)
    elseif #bad > 0 then
      redis.call('HDEL', key, 'loaded_epoch', 'floor_epoch', unpack(bad))
    end
    if found ~= right or #bad > 0 then mended[#mended + 1] = key end
  end
end
return mended
