#!lua flags=allow-oom
--[[
expire: release a hold that the gateway did not close in time, if it really is due.

Why a script: between listing what is due and closing it, the gateway may have
renewed, consumed or released the hold; the check and the close are one step.
By this server's clock, because the gateways' clocks differ.
The quota is back when the ledger has booked the release, not at once: if this server
did not answer, the usage was perhaps booked straight into PostgreSQL. Until the settlement
brings the balance that says so, the hold is all that keeps it from being spent again.

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
  EXPIRED   the hold is closed, its quota in `unposted`; held = how much
  NOT_DUE   renewed meanwhile
  CLOSED    consumed, released or expired meanwhile
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
if state ~= 'held' or held_user ~= user_id or held_token ~= token_id then
  -- Nothing open stands behind this entry of `due`; without this it would be listed for ever.
  if state ~= 'held' then redis.call('ZREM', due, request_id) end
  return {'CLOSED', 0, 0}
end
local expires_at = redis.call('ZSCORE', due, request_id)
if expires_at and tonumber(expires_at) > now_ms then return {'NOT_DUE', 0, 0} end

local keys = {meta = meta, user = user, token = token, hold = hold, due = due, outbox = outbox}
close_unused(
  keys, 'expired', request_id, user_id, token_id, held, asked, held, payload, tombstone_ms, idle_seconds, epoch)
return {'EXPIRED', tonumber(held), ring(meta, doorbell, doorbell_ms)}
