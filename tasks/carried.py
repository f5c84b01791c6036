"""What Redis keeps past its append-only file, carried over a stop in order: written to the file once then, and taken out of it at
the next start.

After any other end it begins anew. What was written last would be older than what watchers have seen, and a counter that falls to
anything but 0 is taken for one that has grown by that since.
"""

from __future__ import annotations

from tasks import keys

_EACH = ", ".join(f"['{key}'] = '{keys.carried(key)}'" for key in (keys.COUNTS, keys.ENDED, keys.FAILED))

WRITE = f"""#!lua
-- Nothing else changes these keys any more. -> 1
for key, carried in pairs({{{_EACH}}}) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('RESTORE', carried, left, redis.call('DUMP', key), 'REPLACE') end
end
return 1
"""

TAKE = f"""#!lua
-- Nothing has changed these keys yet; what stands in them was taken along when the file was written anew. -> 1
for key, carried in pairs({{{_EACH}}}) do
  local left, kept = redis.call('PTTL', carried), redis.call('DUMP', carried)
  redis.set_repl(redis.REPL_NONE)
  redis.call('DEL', key)
  if left > 0 then redis.call('RESTORE', key, left, kept) end
  redis.set_repl(redis.REPL_ALL)
  redis.call('DEL', carried)
end
return 1
"""
