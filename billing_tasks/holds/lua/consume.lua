#!lua flags=allow-oom
--[[
consume: close the request's hold and file what was used in the outbox, in one step.

Why a script: no crash can fall between closing the hold and recording the
charge. Usage is booked whether or not a hold is open: a late consume still charges.
Safe to repeat: the tombstone answers; once it is gone the ledger's unique key does.
A consume that contradicts an earlier one is kept as an event of weight 0.

KEYS[1] meta      hash    run_id, epoch, seq
KEYS[2] user      hash    held, unposted
KEYS[3] token     hash    held, unposted
KEYS[4] hold      string  the hold to close; becomes a tombstone
KEYS[5] due       zset    open holds by expiry
KEYS[6] outbox    stream  gets the event
KEYS[7] doorbell  string  set: a drainer was called or is at work

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] quota         0 to 2^53
ARGV[5] fingerprint   of the consume
ARGV[6] payload       JSON object: of the event what no other argument says (model/events.py)
ARGV[7] doorbell_ms
ARGV[8] tombstone_ms

Returns {outcome, held, ring}
  CONSUMED              the hold is closed, the event filed; held = the quota it held
  CONSUMED_LATE         no hold was open (expired, released, lost or never made); charged all the same
  ALREADY_CONSUMED      the same consume came before
  OTHER_FORMULA         a consume came before, its fingerprint made by another formula; nothing is changed:
                        the caller asks again with a fingerprint by that one
  IDEMPOTENCY_CONFLICT  another consume or another owner had this request_id; filed as a conflict
]]
local meta, user, token, hold, due, outbox, doorbell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local request_id, user_id, token_id, quota = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local fingerprint, payload, doorbell_ms, tombstone_ms = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
--@include fence
--@include hold
--@include take_back
--@include outbox
local epoch = fence(meta)

local state, held_user, held_token, held_amount, held_fingerprint, asked = read_hold(hold)
if state == 'consumed' and held_fingerprint == fingerprint then return {'ALREADY_CONSUMED', 0, 0} end
-- In front of the last 32 digits is the formula's number.
local other_formula = string.sub(held_fingerprint or '', 1, -33) ~= string.sub(fingerprint, 1, -33)
if state == 'consumed' and other_formula then return {'OTHER_FORMULA', 0, 0} end
if state == 'consumed' or (state and (held_user ~= user_id or held_token ~= token_id)) then
  -- Nothing of it will leave `unposted`, so its quota can't be the weight: the payload keeps it.
  payload = '{"quota":' .. quota .. ',' .. string.sub(payload, 2)
  append(meta, outbox, epoch, 'conflict', request_id, user_id, token_id, 0, 0, payload)
  return {'IDEMPOTENCY_CONFLICT', 0, ring(meta, doorbell, doorbell_ms)}
end

local open = state == 'held'
local held = open and held_amount or '0'
-- Taken back, the hold is due; that counts only if its caller never comes again.
if open then write({'ZADD', due, now_ms, request_id}, 'ZREM', due, request_id) end
if quota ~= '0' then -- an account that nothing is counted of would be a key without an end
  count(user, 'unposted', quota)
  count(token, 'unposted', quota)
end
if held ~= '0' then
  count(user, 'held', '-' .. held)
  count(token, 'held', '-' .. held)
end
append(meta, outbox, epoch, 'consume', request_id, user_id, token_id, quota, held, payload)
if held == '0' and quota ~= '0' then
  -- The cached rows may be idle and about to expire; the counter must outlive that.
  redis.call('PERSIST', user)
  redis.call('PERSIST', token)
end
bury_hold(hold, 'consumed', user_id, token_id, held, fingerprint, asked, tombstone_ms)
return {open and 'CONSUMED' or 'CONSUMED_LATE', tonumber(held), ring(meta, doorbell, doorbell_ms)}
