-- Writes that fail on what another program put there (a key of another type, a field that is no number). Each is taken
-- back when a later one fails: Lua does not roll back, and the command is sent once more when `mend` has set that aside,
-- so what failed must have changed nothing. What can't fail comes behind all of these.
local taken_back = {}

local function fail(message)
  for at = #taken_back, 1, -1 do redis.call(unpack(taken_back[at])) end
  error(message)
end

-- `back` is the command that undoes it.
local function write(back, ...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then fail(answer.err) end
  taken_back[#taken_back + 1] = back
  return answer
end

-- HINCRBY by a whole number, as a string.
local function count(key, field, by)
  local back = string.sub(by, 1, 1) == '-' and string.sub(by, 2) or by == '0' and by or '-' .. by
  return write({'HINCRBY', key, field, back}, 'HINCRBY', key, field, by)
end
