"""What Redis keeps past its append-only file outlives a stop in order, and no other end."""

from __future__ import annotations

from tasks import keys
from tasks.carried import TAKE, WRITE
from tests.stack import Stack

PAST_THE_FILE = """
redis.set_repl(redis.REPL_NONE)
redis.call('HINCRBY', 'rl:counts', 'jobs echo interactive stop', ARGV[1])
redis.call('PEXPIRE', 'rl:counts', 2592000000)
redis.call('LPUSH', 'rl:ended', ARGV[1])
redis.call('PEXPIRE', 'rl:ended', 86400000)
"""


def test_what_is_past_the_file_is_carried_over_a_stop_in_order(shaky: Stack) -> None:
    """Once: after any other end it begins anew, and so does what was in the file itself."""
    client = shaky.redis

    def started_again() -> tuple[dict[bytes, bytes], list[bytes]]:
        shaky.stop_valkey()
        shaky.start_valkey()
        client.eval(TAKE, 0)
        return client.hgetall(keys.COUNTS), client.lrange(keys.ENDED, 0, -1)  # type: ignore[return-value]

    client.eval(PAST_THE_FILE, 0, 3)
    client.eval(PAST_THE_FILE, 0, 4)
    client.eval(WRITE, 0)
    assert started_again() == ({b"jobs echo interactive stop": b"7"}, [b"4", b"3"])
    assert (
        86_000_000 < client.pttl(keys.ENDED) <= 86_400_000 < 2_591_000_000 < client.pttl(keys.COUNTS) <= 2_592_000_000
    )
    assert not list(client.scan_iter(keys.carried("rl:*")))
    assert started_again() == ({}, [])
    client.hset(keys.COUNTS, "jobs echo interactive stop", 1)
    assert started_again() == ({}, [])


def test_what_is_carried_is_small(shaky: Stack) -> None:
    """Both lists are full, and five models were used in all ways."""
    client = shaky.redis
    for number in range(100):
        client.lpush(keys.ENDED, f"{number:022}")
        client.lpush(keys.FAILED, f"{number:022}")
        for model in range(5):
            client.hset(keys.COUNTS, f"first model{model} interactive {number % 60}", 123_456_789)
    for key in (keys.ENDED, keys.FAILED, keys.COUNTS):
        client.pexpire(key, 86_400_000)
    before = shaky.moment()
    client.eval(WRITE, 0)
    assert shaky.moment() - before < 16_384
