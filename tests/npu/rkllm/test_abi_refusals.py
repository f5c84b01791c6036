"""What a family cannot do is said before the library is touched; what it can is let through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu.errors import ModelRefused, PromptRefused
from npu.rkllm.abi import Abi, Mode, NativeSampling, Run, Settings, Text, Tokens
from npu.rkllm.abi.refusals import check_run, check_settings, name_for_c, path_for_c, text_for_c
from tests.npu.rkllm.tables import ABIS, family_name

SETTINGS = Settings(model=Path("model.rkllm"), context_length=4096, max_tokens=512)
RUN = Run(inputs=[Tokens([1, 2])])

every_family = pytest.mark.parametrize("abi", ABIS, ids=family_name)


@every_family
def test_what_is_plain_runs_everywhere(abi: Abi) -> None:
    """Tokens, or the text of a user."""
    check_settings(SETTINGS, abi.CAPABILITIES)
    for run in (RUN, Run(inputs=[Text("Hi")]), replace(RUN, mode=Mode.HIDDEN, adapter="a", cache_file=Path("c"))):
        check_run(run, abi.CAPABILITIES, 1)


@every_family
@pytest.mark.parametrize(
    ("change", "capability"),
    [
        ({"slots": 2}, "batches"),
        ({"keep_tokens": -1}, "keep_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"embed_flash": False}, "embed_flash"),
        ({"cpus": (4, 5)}, "cpu_choice"),
    ],
    ids=str,
)
def test_a_setting_follows_its_capability(abi: Abi, change: dict[str, Any], capability: str) -> None:
    settings = replace(SETTINGS, **change)
    if getattr(abi.CAPABILITIES, capability):
        check_settings(settings, abi.CAPABILITIES)
    else:
        with pytest.raises(ModelRefused, match=rf"\({next(iter(change))}\)"):
            check_settings(settings, abi.CAPABILITIES)


@every_family
@pytest.mark.parametrize(
    ("change", "capability"),
    [
        ({"mode": Mode.LOGITS}, "logits"),
        ({"keep_history": True}, "keep_history"),
        ({"sampling": NativeSampling()}, "per_run_sampling"),
        ({"max_tokens": 5}, "per_run_max_tokens"),
        ({"inputs": [Text("{}", role="tool")]}, "roles"),
        ({"inputs": [Text("Hi", thinking=False)]}, "thinking_flag"),
    ],
    ids=str,
)
def test_a_run_follows_its_capability(abi: Abi, change: dict[str, Any], capability: str) -> None:
    run = replace(RUN, **change)
    if getattr(abi.CAPABILITIES, capability):
        check_run(run, abi.CAPABILITIES, 1)
    else:
        with pytest.raises(PromptRefused, match="This RKLLM runtime cannot"):
            check_run(run, abi.CAPABILITIES, 1)


@pytest.mark.parametrize(
    "change",
    [
        *[
            {"context_length": 0},
            {"context_length": 2**31},
            {"max_tokens": 0},
            {"memory_domain": -1},
            {"keep_tokens": -2},
        ],
        *[{"slots": 0}, {"slots": 101}, {"slots": 257}, {"cpus": (32,)}, {"cpus": (-1,)}],
    ],
    ids=str,
)
def test_a_number_c_would_cut_is_refused(change: dict[str, Any]) -> None:
    """257 slots would have become one."""
    with pytest.raises(ModelRefused, match="must be between"):
        check_settings(replace(SETTINGS, **change), ABIS[-1].CAPABILITIES)


@pytest.mark.parametrize(
    ("run", "slots"),
    [
        (Run(inputs=[]), 1),
        (Run(inputs=[Tokens([1])]), 2),
        (Run(inputs=[Tokens([1]), Tokens([1])]), 1),
        (Run(inputs=[Tokens([])]), 1),
        (Run(inputs=[Text("")]), 1),
        (Run(inputs=[Text("Hi", role="system")]), 1),
        (Run(inputs=[Tokens([1]), Tokens([1])], mode=Mode.LOGITS), 2),
        (Run(inputs=[Tokens([1])], max_tokens=0), 1),
    ],
    ids=str,
)
def test_a_run_nobody_can_do_is_refused(run: Run, slots: int) -> None:
    """With fewer inputs than slots, the library would read on past the last."""
    with pytest.raises(PromptRefused):
        check_run(run, ABIS[-1].CAPABILITIES, slots)


@pytest.mark.parametrize("text", ["cut\0here", "half \ud800"])
def test_text_c_cannot_read_is_refused(text: str) -> None:
    """C would stop at the NUL and answer another question."""
    with pytest.raises(PromptRefused):
        text_for_c(text)
    with pytest.raises(ModelRefused):
        name_for_c(text)


def test_a_path_is_absolute_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_for_c(Path("a.rkllm")) == bytes(tmp_path / "a.rkllm")
    with pytest.raises(ModelRefused):
        path_for_c(Path("a\0b"))
