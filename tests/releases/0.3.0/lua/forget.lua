#!lua flags=allow-oom
--[[
forget: have an account's cached row loaded again before it is next used.

Why a script: only the very row that was found wrong is forgotten; one that was
written meanwhile stays. `held` and `unposted` stay, and so does what they mean.
Safe to repeat.

KEYS[1] account  hash  user or token

ARGV[1] version  of the cached row that is wrong

Returns {outcome}
  FORGOTTEN  the next reservation reads PostgreSQL
  CHANGED    another row is cached by now, or none
]]
local account = KEYS[1]
local version = ARGV[1]
if redis.call('HGET', account, 'version') ~= version then return {'CHANGED'} end
redis.call('HDEL', account, 'balance', 'version', 'facts', 'loaded_at', 'loaded_epoch', 'floor_epoch')
return {'FORGOTTEN'}
