#!lua flags=allow-oom
--[[
ring: claim the right to call a drainer, for an outbox that perhaps no drainer was called for.

Why a script: a server whose memory is full refuses a plain SET, and then a ring
that was lost would never be repeated for the outbox that fills the memory.
A doorbell that stays set for longer than any caller means it to is of a clock that had run ahead, or of a stranger.

KEYS[1] doorbell  string  set: a drainer was called or is at work
KEYS[2] meta      hash    rings: how many calls no drainer has answered

ARGV[1] doorbell_ms
ARGV[2] longest_ms   no doorbell is meant to stay set for longer
ARGV[3] anew         1: a worker is there now; earlier calls don't count

Returns {outcome}
  RUNG      the caller is to call a drainer
  ATTENDED  a drainer was called within doorbell_ms, or often enough while no worker answers, or is at work
]]
local doorbell, meta = KEYS[1], KEYS[2]
local doorbell_ms, longest_ms, anew = ARGV[1], tonumber(ARGV[2]), ARGV[3]
--@include take_back
--@include outbox
if anew == '1' then redis.call('HDEL', meta, 'rings') end
local ttl = redis.call('PTTL', doorbell)
if ttl == -1 or ttl > longest_ms then redis.call('DEL', doorbell) end
if ring(meta, doorbell, doorbell_ms) == 1 then return {'RUNG'} end
return {'ATTENDED'}
