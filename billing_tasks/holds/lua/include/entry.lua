-- What outbox.lua wrote of an event; empty words and a weight of 0 for what it did not write.
-- replies.parse_entry reads the same, to the letter: a script that saw a weight where the worker saw none
-- would keep the entry for ever.
local function read_entry(entry)
  local kind, request_id, user_id, token_id, weight, held, filed_ms
  if entry[2][1] == 'event' and #entry[2] == 4 and entry[2][3] == 'payload' then
    kind, request_id, user_id, token_id, weight, held, filed_ms =
      string.match(entry[2][2], '^(%a+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  end
  if not kind or math.max(#user_id, #token_id, #weight, #held, #filed_ms) > 18 then return '', '', '', '', 0 end
  return kind, request_id, user_id, token_id, tonumber(weight)
end
