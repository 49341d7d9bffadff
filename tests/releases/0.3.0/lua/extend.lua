#!lua
--[[
extend: set what an open hold holds, and keep it for another ttl; or change nothing.

Why a script: the check and the growth must not be separated, or two streams could both grow by the
same quota.
Safe to repeat: the total is set, not added to. What the request asked for first stays known, so that a
reservation that is repeated is still the same.
Refused before the first write when memory is full (no allow-oom). A total below what is held gives quota back.

KEYS[1] meta      hash    run_id, epoch, seq; version
KEYS[2] user      hash    the user's cached row, and held, unposted
KEYS[3] token     hash    the token's cached row, and held, unposted
KEYS[4] hold      string  the hold to change
KEYS[5] due       zset    open holds by expiry (milliseconds, this server's clock)

ARGV[1] request_id
ARGV[2] user_id
ARGV[3] token_id
ARGV[4] total          quota to be held altogether, 0 to 2^53
ARGV[5] ttl_ms
ARGV[6] fresh_ms       an older cached row answers STALE; 0: any age will do

Returns {outcome, a, b, now_ms, epoch}; the epoch is that of loading
  EXTENDED                 a = expires_at_ms, b = user's available quota after it
  NO_HOLD                  no trace of a hold
  HOLD_CLOSED              consumed, released or expired; a = which
  IDEMPOTENCY_CONFLICT     the hold is another user's or token's
  NOT_LOADED               the user or the token is not cached, or in an older epoch; a = the highest version of an
                           account that was seen of PostgreSQL
  STALE                    a cached row is older than fresh_ms, or of a clock that ran ahead; a likewise
  USER_DISABLED            b = age of the cached row in ms, here and below
  TOKEN_OF_ANOTHER_USER
  TOKEN_DISABLED
  TOKEN_EXPIRED
  INSUFFICIENT_USER_QUOTA  a = available quota, beside what is held already
  INSUFFICIENT_TOKEN_QUOTA a = available quota, likewise
]]
local meta, user, token, hold, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local request_id, user_id, token_id, total = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl_ms, fresh_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
-- The server's clock, and the shard's epoch. Included by every script that trusts what it reads.
-- An epoch is one run of one server as a primary: when its run_id or its replication id is not the one in `meta`,
-- this server was restarted, restored or promoted (an old primary that is promoted again keeps its run_id, never its
-- replication id), and what it remembers may be old. The epoch then moves on, the outbox numbering starts again, and
-- accounts cached in older epochs count as not loaded.
-- The last two words of ARGV are the replication id and the run_id that the caller's connection was told. They are
-- right if they are those in `meta`; in any other case the server is asked (INFO takes 8 us).
-- The second answer is the epoch of loading: what is cached counts only within it. It moves on with the epoch, and
-- when PostgreSQL turns out to be another run of a server than before (new_ledger.lua counts those in `loads`).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function new_epoch(meta, before)
  local now_us, least = time[1] * 1000000 + time[2], (tonumber(before) or 0) + 1
  if not before then
    -- `meta` was lost, the outbox perhaps was not: ids of a stream only grow. No script wrote one above 2^53, or one
    -- without an event in it.
    local last = redis.pcall('XREVRANGE', string.gsub(meta, 'meta$', 'outbox'), '+', '-', 'COUNT', 1)
    local known = last[1] and last[1][2][1] == 'event' and tonumber(string.match(last[1][1], '^%d+')) or 0
    if known < 9007199254740991 then least = math.max(least, known + 1) end
  end
  local epoch = string.format('%.0f', math.max(least, now_us))
  -- What this server remembers of the epoch before, so that the ledger can tell how much of it is missing.
  local seq = redis.call('HGET', meta, 'seq')
  if before then redis.call('HSET', meta, 'before_epoch', before, 'before_seq', seq or 0) end
  redis.call('HSET', meta, 'epoch', epoch, 'seq', 0)
  redis.call('HDEL', meta, 'settled')
  return epoch
end

local function ask_server(meta, known_run_id, known_replid, epoch)
  local info = redis.call('INFO', 'server', 'replication')
  local run_id, replid = string.match(info, 'run_id:(%x+)'), string.match(info, 'master_replid:(%x+)')
  if known_run_id == run_id and known_replid == replid then return epoch end
  -- Release 0.2.0 noted no replication id; of the same run, it may be the one of today.
  if known_run_id ~= run_id or known_replid then epoch = new_epoch(meta, epoch) end
  redis.call('HSET', meta, 'run_id', run_id, 'replid', replid)
  return epoch
end

local function fence(meta)
  local run_id, replid, epoch, loads = unpack(redis.call('HMGET', meta, 'run_id', 'replid', 'epoch', 'loads'))
  if run_id ~= ARGV[#ARGV] or replid ~= ARGV[#ARGV - 1] then epoch = ask_server(meta, run_id, replid, epoch) end
  return epoch, loads and epoch .. '.' .. loads or epoch
end
-- A hold is one string: "<state> <user_id> <token_id> <quota> <fingerprint>". Words behind those are a later release's
-- and are ignored here. A hold whose quota was changed since has the word asked:<quota that was asked for first>: in
-- place of the fingerprint, which only a consumed one has, because release 0.1.0 reads no hold of six words. An open
-- hold of a gateway that named the request by a key of its own ends with key:<that key, in percent-encoding>.
-- States: held, then one of consumed, released, expired (a tombstone that answers repeats for a while).
local function read_hold(key)
  local packed = redis.call('GET', key)
  if not packed then return nil end
  local state, user_id, token_id, quota, fingerprint = string.match(packed, '^(%a+) (%d+) (%d+) (%d+) (%S+)')
  return state, user_id, token_id, quota, fingerprint, string.match(packed, ' (asked:%d+)'),
    string.match(packed, ' (key:%S+)')
end

-- What the request asked for first.
local function asked_first(quota, asked)
  return asked and string.sub(asked, 7) or quota
end

local function bury_hold(key, state, user_id, token_id, quota, fingerprint, asked, tombstone_ms)
  local words = {state, user_id, token_id, quota, fingerprint == '-' and asked or fingerprint}
  if fingerprint ~= '-' then words[6] = asked end
  redis.call('SET', key, table.concat(words, ' '), 'PX', tombstone_ms)
end
-- Needs fence. May this user and token set so much more aside?
-- A row can't have been read later than now, unless the clock was set back since; a little is allowed for corrections.
local CLOCK_SLACK_MS = 1000

-- What a check needs of a cached account: balance, held, unposted, attributes, when and in which epoch it was loaded.
local function read_account(key)
  return redis.call('HMGET', key, 'balance', 'held', 'unposted', 'facts', 'loaded_at', 'loaded_epoch')
end

-- nil if they may, else the outcome and what it tells. `wanted` in quota.
local function check_payer(meta, u, t, epoch, fresh_ms, user_id, wanted)
  local function version_seen() return tonumber(redis.call('HGET', meta, 'version') or 0) end
  -- Without attributes (`facts`): an older release wrote what is cached.
  if u[6] ~= epoch or t[6] ~= epoch or not (u[4] and t[4]) then return 'NOT_LOADED', version_seen() end
  local user_age, token_age = now_ms - u[5], now_ms - t[5]
  local stale = math.max(user_age, token_age) > fresh_ms or math.min(user_age, token_age) < -CLOCK_SLACK_MS
  if fresh_ms > 0 and stale then return 'STALE', version_seen() end

  if string.match(u[4], '^%S+') ~= 'enabled' then return 'USER_DISABLED', 0, user_age end
  local status, owner, unlimited, expires = string.match(t[4], '^(%S+) (%d+) ([01]) (%S+)')
  if owner ~= user_id then return 'TOKEN_OF_ANOTHER_USER', 0, token_age end
  if status ~= 'enabled' then return 'TOKEN_DISABLED', 0, token_age end
  if expires ~= '-' and tonumber(expires) <= now_ms then return 'TOKEN_EXPIRED', 0, token_age end

  local available = tonumber(u[1]) - tonumber(u[2] or 0) - tonumber(u[3] or 0)
  if available < wanted then return 'INSUFFICIENT_USER_QUOTA', available, user_age end
  if unlimited ~= '1' then
    local token_available = tonumber(t[1]) - tonumber(t[2] or 0) - tonumber(t[3] or 0)
    if token_available < wanted then return 'INSUFFICIENT_TOKEN_QUOTA', token_available, token_age end
  end
end
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
local _, epoch = fence(meta)
local function answer(outcome, a, b) return {outcome, a or 0, b or 0, now_ms, epoch} end

local state, held_user, held_token, held, _, asked, key = read_hold(hold)
if not state then return answer('NO_HOLD') end
if held_user ~= user_id or held_token ~= token_id then return answer('IDEMPOTENCY_CONFLICT') end
if state ~= 'held' then return answer('HOLD_CLOSED', state) end

local growth = tonumber(total) - tonumber(held)
local u = read_account(user)
local available = tonumber(u[1] or 0) - tonumber(u[2] or 0) - tonumber(u[3] or 0)
if growth > 0 then
  local refusal, a, b = check_payer(meta, u, read_account(token), epoch, fresh_ms, user_id, growth)
  if refusal then return answer(refusal, a, b) end
end

local expires_at = now_ms + ttl_ms
count(user, 'held', string.format('%.0f', growth))
count(token, 'held', string.format('%.0f', growth))
write(nil, 'ZADD', due, 'GT', expires_at, request_id)
redis.call('SET', hold, table.concat({'held', user_id, token_id, total, asked or 'asked:' .. held, key}, ' '))
-- A hold of nothing that grows: its accounts must stay.
redis.call('PERSIST', user)
redis.call('PERSIST', token)
return answer('EXTENDED', tonumber(redis.call('ZSCORE', due, request_id)), available - growth)
