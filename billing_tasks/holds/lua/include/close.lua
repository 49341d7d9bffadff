-- Needs take_back and outbox. Release an open hold: the list and the counters first, which may be another program's by
-- now, then the event, then the tombstone. Taken back, the hold is due; that counts only if its caller never comes again.
-- `weight` stays set aside (in `unposted`) until the ledger has booked the event: '0', or all that was held.
local function close_unused(k, state, request_id, user_id, token_id, held, asked, weight, payload, tombstone_ms,
    idle_seconds, epoch)
  write({'ZADD', k.due, now_ms, request_id}, 'ZREM', k.due, request_id)
  if held ~= '0' then -- HINCRBY refuses '-0'
    count(k.user, 'held', '-' .. held)
    count(k.token, 'held', '-' .. held)
  end
  if weight ~= '0' then
    count(k.user, 'unposted', weight)
    count(k.token, 'unposted', weight)
  end
  append(k.meta, k.outbox, epoch, 'release', request_id, user_id, token_id, weight, held, payload)
  bury_hold(k.hold, state, user_id, token_id, held, '-', asked, tombstone_ms)
  expire_if_idle(k.user, idle_seconds)
  expire_if_idle(k.token, idle_seconds)
end
