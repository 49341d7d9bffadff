#!lua flags=allow-oom
--[[
release: close an open hold unused, because the upstream call failed.

Why a script: the quota returns and the event that says so is filed in one step.
Safe to repeat: the tombstone answers. Goes by hold, never by an amount.

KEYS[1] meta      hash    run_id, epoch, seq
KEYS[2] user      hash    held
KEYS[3] token     hash    held
KEYS[4] hold      string  the hold to close; becomes a tombstone
KEYS[5] due       zset    open holds by expiry
KEYS[6] outbox    stream  gets the event
KEYS[7] doorbell  string  set: a drainer was called or is at work

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] payload       JSON object: of the event what no other argument says (model/events.py)
ARGV[5] doorbell_ms
ARGV[6] tombstone_ms
ARGV[7] idle_seconds

Returns {outcome, held, ring}
  RELEASED              the quota is back; held = how much
  ALREADY_RELEASED      released or expired before; nothing to release
  ALREADY_CONSUMED      the request was charged; refund the charge instead
  NO_HOLD               no trace of a hold: never made, forgotten, or lost with the server
  IDEMPOTENCY_CONFLICT  the hold is another user's or token's
]]
local meta, user, token, hold, due, outbox, doorbell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local request_id, user_id, token_id, payload = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local doorbell_ms, tombstone_ms, idle_seconds = ARGV[5], ARGV[6], ARGV[7]
--@include fence
--@include hold
--@include take_back
--@include outbox
--@include idle
--@include close
local epoch = fence(meta)

local state, held_user, held_token, held, _, asked = read_hold(hold)
if not state then return {'NO_HOLD', 0, 0} end
if held_user ~= user_id or held_token ~= token_id then return {'IDEMPOTENCY_CONFLICT', 0, 0} end
if state == 'consumed' then return {'ALREADY_CONSUMED', 0, 0} end
if state ~= 'held' then return {'ALREADY_RELEASED', 0, 0} end

local keys = {meta = meta, user = user, token = token, hold = hold, due = due, outbox = outbox}
close_unused(
  keys, 'released', request_id, user_id, token_id, held, asked, '0', payload, tombstone_ms, idle_seconds, epoch)
return {'RELEASED', tonumber(held), ring(meta, doorbell, doorbell_ms)}
