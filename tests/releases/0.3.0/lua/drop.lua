#!lua flags=allow-oom
--[[
drop: take entries out of the outbox that settled.lua can't, because no script of this product wrote them.

What could be booked of them is booked, and the rest is kept as dead letters, before this is called. They never
counted in `unposted`, as far as can be told; `recount` sets that right if they did.
Safe to repeat: an entry that is gone changes nothing, and one that is not as the caller read it stays.

KEYS[1] outbox  stream

ARGV[...] for each entry: its id, its event as the caller read it, its payload; without an event the payload is all
          that the entry has, joined by spaces

Returns {dropped, gone}; gone: entries that are there no more
]]
local outbox = KEYS[1]
local dropped, gone = 0, 0
for at = 1, #ARGV, 3 do
  local id, event, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local entry = redis.call('XRANGE', outbox, id, id)[1]
  local same = false
  if entry and event == '' then
    same = table.concat(entry[2], ' ') == payload
  elseif entry then
    same = entry[2][2] == event and entry[2][4] == payload
  end
  if not entry then gone = gone + 1 end
  if same then dropped = dropped + redis.call('XDEL', outbox, id) end
end
return {dropped, gone}
