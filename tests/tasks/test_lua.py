"""What the steps that Redis runs are made of."""

from __future__ import annotations

import re

from tasks import scripts
from tasks.lua import _PARTS, Script


def test_a_step_has_what_it_calls_and_nothing_else() -> None:
    """Also what that calls in turn; a word in a comment or a text calls nothing."""
    made = Script("-- cancel\nredis.call('HSET', 'finish', 'bell', now())").source
    assert re.findall(r"^local function (\w+)", made, re.MULTILINE) == ["clocks", "stands", "now"]
    assert "local raw_clock, clock_shift, clock_seen\n" in made


def test_the_step_of_each_token_has_nothing_of_an_end() -> None:
    """Redis would make all of its functions for every token."""
    made = scripts.APPEND.source
    assert re.findall(r"^local function (\w+)", made, re.MULTILINE) == ["last_id", "last_seq"]


def test_all_that_is_common_belongs_to_a_name() -> None:
    """Nothing stands between the parts, where it would come and go with one of them."""
    for made, _, code in _PARTS:
        lines = re.sub(r"^\s*--.*\n?", "", code, flags=re.MULTILINE).strip("\n").split("\n")
        inner, last = lines[1:-1], lines[-1]
        assert made and all(line.startswith(" ") for line in inner if line), code
        assert lines[0].startswith("local ") and (len(lines) == 1 or last == "end"), code
