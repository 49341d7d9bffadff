-- What outbox.lua wrote of an event; empty words and a weight of 0 for what it did not write. Words and fields behind
-- those it knows are a later release's and are ignored.
-- replies.parse_entry reads exactly the same: a script that saw a weight where the worker saw none
-- would keep the entry for ever.
local function read_entry(entry)
  local kind, request_id, user_id, token_id, weight, held, filed_ms, more
  if entry[2][1] == 'event' and #entry[2] >= 4 and entry[2][3] == 'payload' then
    kind, request_id, user_id, token_id, weight, held, filed_ms, more =
      string.match(entry[2][2], '^(%a+) (%S+) (%d+) (%d+) (%d+) (%d+) (%d+)(.*)$')
  end
  if not kind or (more ~= '' and string.sub(more, 1, 1) ~= ' ') or math.max(#user_id, #token_id, #weight, #held, #filed_ms) > 18 then return '', '', '', '', 0 end
  return kind, request_id, user_id, token_id, tonumber(weight)
end
