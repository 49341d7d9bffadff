-- Release an open hold: the event first, then the counters, then the tombstone.
-- `weight` stays set aside (in `unposted`) until the ledger has booked the event: '0', or all that was held.
local function close_unused(k, state, request_id, user_id, token_id, held, asked, weight, payload, tombstone_ms,
    idle_seconds, epoch)
  append(k.meta, k.outbox, epoch, 'release', request_id, user_id, token_id, weight, held, payload)
  redis.call('ZREM', k.due, request_id)
  if held ~= '0' then -- HINCRBY refuses '-0', and Lua does not roll back
    redis.call('HINCRBY', k.user, 'held', '-' .. held)
    redis.call('HINCRBY', k.token, 'held', '-' .. held)
  end
  if weight ~= '0' then
    redis.call('HINCRBY', k.user, 'unposted', weight)
    redis.call('HINCRBY', k.token, 'unposted', weight)
  end
  bury_hold(k.hold, state, user_id, token_id, held, '-', asked, tombstone_ms)
  expire_if_idle(k.user, idle_seconds)
  expire_if_idle(k.token, idle_seconds)
end
