"""Runs `tests/device`, the tests that only a board can pass, where they and their tools are installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from npu.rkllm.acceptance import without_folders
from tasks.settings import ROOT

FOLDER = ROOT / "tests/device"
SECONDS = 1800.0
"""Of the tests of one file and model."""
MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class DeviceTest:
    """One of them."""

    name: str
    outcome: str
    """`passed`, `skipped` or `failed`."""
    seconds: float
    why: str = ""
    """The reason of the latter two."""


@dataclass(frozen=True, slots=True)
class DeviceTests:
    """What came of them."""

    why_not: str = ""
    """Why they were not run; empty when they were."""
    tests: tuple[DeviceTest, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether one did."""
        return any(test.outcome == "failed" for test in self.tests)

    def summary(self) -> str:
        """In a few words."""
        counts = Counter(test.outcome for test in self.tests)
        return self.why_not or ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def run_device_tests(inherited: Mapping[str, str]) -> DeviceTests:
    """With `inherited` as their environment, by which they find models and library."""
    if not FOLDER.is_dir():
        return DeviceTests("not run: this installation comes without its tests")
    if importlib.util.find_spec("pytest") is None:
        return DeviceTests("not run: pytest is not installed; `ops/setup test` installs it")
    listed = _pytest(inherited, "--collect-only", str(FOLDER))
    groups: dict[tuple[str, str], list[str]] = {}
    for line in listed.stdout.splitlines():
        if "::" in line:
            file, _, test = line.partition("::")
            groups.setdefault((file, test.partition("[")[2]), []).append(line)
    if not groups:
        return DeviceTests(f"not run: there are none to be found (pytest ended with {listed.returncode})")
    return DeviceTests(tests=tuple(test for tests in groups.values() for test in _run(inherited, tests)))


def _run(inherited: Mapping[str, str], tests: Sequence[str]) -> Iterator[DeviceTest]:
    """Those of one file and model, in a process that a crash in the library may take down."""
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "result.xml"
        try:
            done = _pytest(inherited, f"--junitxml={result}", *tests)
            why = f"with those beside it: the process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            why = f"with those beside it: not through after {SECONDS:.0f} s"
        if result.is_file():
            yield from (_read(case) for case in ElementTree.parse(result).iter("testcase"))
        else:
            yield from (DeviceTest(test.partition("::")[2], "failed", 0.0, why) for test in tests)


def _pytest(inherited: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "npu", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=dict(inherited),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _read(case: ElementTree.Element) -> DeviceTest:
    outcome, why = "passed", ""
    for kind, meaning in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
        found = case.find(kind)
        if found is not None:
            outcome, why = meaning, without_folders(found.get("message", ""))[:MESSAGE_CHARACTERS]
    return DeviceTest(case.get("name", ""), outcome, float(case.get("time", "0")), why)
