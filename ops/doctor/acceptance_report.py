"""The report of `doctor --acceptance` as a page to read, and both its forms as files to send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from npu.rkllm.acceptance import Row
from npu.whole_file import write_whole
from ops.doctor.acceptance import Acceptance, Asked


def write(acceptance: Acceptance, folder: Path) -> tuple[Path, Path]:
    """The page and the JSON, in `folder`, named by model and time."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{acceptance.model['id']}-{acceptance.taken[:19].replace(':', '')}"
    page, data = folder / f"{stem}.md", folder / f"{stem}.json"
    for path, text in (
        (page, "\n".join(to_markdown(acceptance)) + "\n"),
        (data, json.dumps(acceptance.to_json(), indent=1, ensure_ascii=False) + "\n"),
    ):
        write_whole(path, text.encode())
    return page, data


def to_markdown(acceptance: Acceptance) -> Iterator[str]:
    """Lines of the page."""
    machine, library, model = acceptance.machine, acceptance.library, acceptance.model
    yield f"# {model['id']} on {machine['board'] or machine['chip'] or 'a machine without an NPU'}"
    yield ""
    yield f"Taken {acceptance.taken} in {acceptance.seconds:.0f} s. Prompts are this program's own; nothing here names a person."
    yield ""
    for name, value in (
        ("chip", machine["chip"]),
        ("kernel", f"{machine['kernel']} ({machine['architecture']})"),
        ("driver", machine["driver"]),
        ("memory", f"{machine['memory']['total'] / 1e9:.1f} GB"),
        ("governors", ", ".join(f"{clock['name']} {clock['governor']}" for clock in machine["clocks"])),
        ("library", f"{library['file']} {library['version'] or library['called_as']}, SHA-256 {library['sha256']}"),
        ("model", f"{model['file']}, {model['size_bytes'] / 1e6:.0f} MB, context {model['context_length']}"),
        ("doctor", ", ".join(acceptance.findings)),
    ):
        yield f"- {name}: {value or 'not told'}"
    yield from ("", "## Open questions", "", "| question | answer | evidence |", "|---|---|---|")
    for asked in acceptance.questions:
        evidence = " ".join(asked.found.evidence)
        yield f"| {asked.question.asks} (`{asked.found.name}`) | **{asked.found.answer}** | {_cell(evidence)} |"
    yield from ("", "## Measured")
    for asked in acceptance.measures:
        yield from _measured(asked)
    yield from ("", "## Tests on the device", "")
    if acceptance.device_tests.why_not:
        yield f"{acceptance.device_tests.why_not}."
    if acceptance.device_tests.tests:
        yield from ("| test | outcome | seconds | why |", "|---|---|---|---|")
    for test in acceptance.device_tests.tests:
        yield f"| {_cell(test.name)} | {test.outcome} | {test.seconds:.1f} | {_cell(test.why)} |"


def _measured(asked: Asked) -> Iterator[str]:
    yield from ("", f"### {asked.question.asks}", "")
    if asked.found.answer:
        yield f"**{asked.found.answer}**"
        yield ""
    yield from _table(asked.found.rows)
    for note in asked.found.evidence:
        yield f"- {_cell(note)}"


def _table(rows: tuple[Row, ...]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(rows[0])} |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield f"| {' | '.join('–' if value is None else _cell(str(value)) for value in row.values())} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
