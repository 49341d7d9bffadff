-- Needs hold and entry. What an account's counters should be: the sum of its open holds, and of its events' weights.
-- Nothing if the shard has more than `most` of both: reading them would keep all other clients waiting.
local function explained(prefix, due, outbox, which, id, most)
  if redis.call('ZCARD', due) + redis.call('XLEN', outbox) > tonumber(most) then return nil end
  local holds, weights = 0, 0
  for _, request_id in ipairs(redis.call('ZRANGE', due, 0, -1)) do
    local state, user_id, token_id, quota = read_hold(prefix .. 'hold:' .. request_id)
    if state == 'held' and (which == 'user' and user_id or token_id) == id then holds = holds + tonumber(quota) end
  end
  for _, entry in ipairs(redis.call('XRANGE', outbox, '-', '+')) do
    local _, _, user_id, token_id, weight = read_entry(entry)
    if (which == 'user' and user_id or token_id) == id then weights = weights + weight end
  end
  return holds, weights
end
