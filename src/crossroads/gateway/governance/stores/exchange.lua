-- One worker's exchange on any number of accounts: stores/base.py in the words of Redis.
-- KEYS: the workers, then the state and the leases of each account.
-- ARGV: worker, its time to live in ms, then ten numbers for each account.
-- Whole numbers are exact up to 2^53.
local slack = 1000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local worker, ttl = ARGV[1], tonumber(ARGV[2])

local function text(number)
  return string.format('%.0f', number)
end

redis.call('ZADD', KEYS[1], text(now + ttl), worker)
-- A worker that was gone for long holds nothing any more.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now - 100 * ttl))

local function alive(name)
  local expires = redis.call('ZSCORE', KEYS[1], name)
  return expires and now < tonumber(expires)
end

local answers = {}
for i = 2, #KEYS, 2 do
  local at = 2 + (i - 2) / 2 * 10
  local limit, period, keep = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local seq, used, back = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local calls, need = tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8])
  local block, since = tonumber(ARGV[at + 9]), tonumber(ARGV[at + 10])

  local state = redis.call('HMGET', KEYS[i], 'level', 'last', 'calls')
  local is_bucket = period > 0
  local capacity = limit * period
  local level = tonumber(state[1]) or capacity  -- of a balance, whose capacity is 0, what is spent
  local last = tonumber(state[2]) or now
  local settled = tonumber(state[3]) or 0

  if is_bucket then
    level = math.min(level, capacity)
    if since >= 0 then
      last = math.max(last, now - since - slack)
    end
    if now > last then
      level = math.min(capacity, level + (now - last) * limit)
    end
  end
  local function give(units)
    if is_bucket then
      level = math.min(capacity, level + units * period)
    else
      level = level - units
    end
  end
  local function free()
    if is_bucket then
      return math.floor(level / period)
    end
    return limit - level
  end

  local held, seen, leased = 0, 0, 0
  local leases = redis.call('HGETALL', KEYS[i + 1])
  for j = 1, #leases, 2 do
    local units, number = string.match(leases[j + 1], '^(%d+):(%d+)$')
    if leases[j] == worker then
      held, seen = tonumber(units), tonumber(number)
    elseif alive(leases[j]) then
      leased = leased + tonumber(units)
    else
      give(tonumber(units))
      redis.call('HDEL', KEYS[i + 1], leases[j])
    end
  end
  if seq > seen then
    seen = seq
    settled = settled + calls
    give(back)
    held = held - used - back
    if held < 0 then
      give(held)
      held = 0
    end
  end
  local granted = math.max(0, math.min(free(), math.max(need, math.min(block, math.floor(free() / 8)))))
  give(-granted)
  held = held + granted

  redis.call('HSET', KEYS[i], 'level', text(level), 'last', text(now), 'calls', text(settled))
  redis.call('HSET', KEYS[i + 1], worker, text(held) .. ':' .. text(seen))
  redis.call('PEXPIRE', KEYS[i], text(keep))
  redis.call('PEXPIRE', KEYS[i + 1], text(keep))
  local spent = 0
  if not is_bucket then
    spent = level
  end
  for _, number in ipairs({ held, free(), spent, leased + held, settled }) do
    answers[#answers + 1] = number
  end
end
return answers
