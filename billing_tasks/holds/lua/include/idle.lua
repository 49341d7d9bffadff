-- An account with nothing held and nothing unposted has no counters to keep: let it expire after a while.
local function expire_if_idle(account, idle_seconds)
  local held, unposted = unpack(redis.call('HMGET', account, 'held', 'unposted'))
  if tonumber(held or 0) == 0 and tonumber(unposted or 0) == 0 then
    redis.call('EXPIRE', account, idle_seconds)
    return true
  end
  return false
end
