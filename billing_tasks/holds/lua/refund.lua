#!lua flags=allow-oom
--[[
refund: file the refund of a booked charge in the outbox.

It changes no counter: the quota is back when the ledger has booked it. Whether
the charge exists and how much of it is left only the ledger can know.
Safe to repeat: the ledger's refund_id is unique.

KEYS[1] meta      hash    run_id, epoch, seq
KEYS[2] outbox    stream  gets the event
KEYS[3] doorbell  string  set: a drainer was called or is at work

ARGV[1] request_id    of the charge
ARGV[2] user_id
ARGV[3] payload       JSON object: of the event what no other argument says (model/events.py)
ARGV[4] doorbell_ms

Returns {outcome, ring}
  FILED  the event is in the outbox
]]
local meta, outbox, doorbell = KEYS[1], KEYS[2], KEYS[3]
local request_id, user_id, payload, doorbell_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
--@include fence
--@include take_back
--@include outbox
append(meta, outbox, fence(meta), 'refund', request_id, user_id, 0, 0, 0, payload)
return {'FILED', ring(meta, doorbell, doorbell_ms)}
