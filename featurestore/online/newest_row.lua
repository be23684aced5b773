-- Of every key keep the greatest row: event time, created time, then bytes, whatever the order of writers.
-- ARGV: ttl_ms (0: rows stay), now_ms, slack_ms, then one row per key. Returns a digit per row:
-- 1 for one that became its key's value, 0 for one that lost to another of this call or was there already, 2 for one
-- that lost to what the store held: the writer looks whether that is sound.
-- Rows open with both times as 16 big-endian bytes whose order is the order of time. Strings are never compared
-- with < here: Lua compares by the server's locale.

local ttl, now, slack = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function greater(a, b)
  for i = 17, math.min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local held = redis.call('MGET', unpack(KEYS))
local best, order, winner, lost = {}, {}, {}, {}

local function left_ms(row)
  local high, low = struct.unpack('>I4I4', row)
  local event_ms = ((high - 2147483648) * 4294967296 + low) / 1000
  -- Counted from the writer's clock: the server's may live in another year than the data.
  return string.format('%.0f', math.min(math.max(event_ms + ttl - now, 0) + slack, 9e14))
end

for i = 1, #KEYS do
  local key, row = KEYS[i], ARGV[i + 3]
  local old = best[key] or held[i]
  local wins = not old or #old < 16
  if old == row then
    -- Nothing to write, but the view's ttl may have changed since.
    if ttl == 0 then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, left_ms(row)) end
  elseif not wins then
    local e1, e2, c1, c2 = struct.unpack('>I4I4I4I4', row)
    local f1, f2, d1, d2 = struct.unpack('>I4I4I4I4', old)
    if e1 ~= f1 then wins = e1 > f1
    elseif e2 ~= f2 then wins = e2 > f2
    elseif c1 ~= d1 then wins = c1 > d1
    elseif c2 ~= d2 then wins = c2 > d2
    else wins = greater(row, old) end
  end
  if not wins and old ~= row and not best[key] then lost[#lost + 1] = i end
  if wins then
    if not best[key] then order[#order + 1] = key end
    best[key], winner[key] = row, i
  end
end

if #order == 0 and #lost == 0 then return string.rep('0', #KEYS) end
if ttl == 0 and #order > 0 then
  local pairs_ = {}
  for i, key in ipairs(order) do
    pairs_[2 * i - 1], pairs_[2 * i] = key, best[key]
  end
  redis.call('MSET', unpack(pairs_))
else
  for _, key in ipairs(order) do
    redis.call('SET', key, best[key], 'PX', left_ms(best[key]))
  end
end
if #order == #KEYS then return string.rep('1', #KEYS) end
local won = {}
for i = 1, #KEYS do won[i] = '0' end
for _, i in ipairs(lost) do won[i] = '2' end
for _, i in pairs(winner) do won[i] = '1' end
return table.concat(won)
