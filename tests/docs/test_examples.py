"""What the pages tell a newcomer to type works, letter by letter; only the address is another."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from typer.main import get_command

from npu.manifest import read_manifest
from npu.model import Model
from ops import configuration, environment
from ops.cli.main import app
from tasks import keys
from tasks.settings import ROOT
from tests.docs.pages import PAGES, Block, blocks, commands
from tests.npu.demo import demo_model
from tests.stack import LIMIT, Stack, eventually

ADDRESS = "http://127.0.0.1:8080"
DEMO = "smollm2-135m-instruct"
TYPED = (
    *("README.md", "docs/getting-started.md", "docs/jobs.md"),
    *("docs/openai.md", "docs/responses.md", "docs/batch.md", "docs/anthropic.md", "docs/ollama.md"),
)
"""The pages whose examples are run."""
JOURNEY = "docs/getting-started.md"
"""The page whose commands belong together."""
COMMAND_LINE = "docs/command-line.md"
ADMINISTRATION = ("docs/boards.md", "docs/models.md", "docs/operations.md", "docs/security.md", "docs/tuning.md")
"""Pages whose lines for administrators are run."""
ASKS = re.compile(
    r"\.venv/bin/rockchipllama (boards( drain| resume)?( second)?$|models (available|load|loaded|unload|du|prune)\b"
    r"|keys|settings|jobs|why)"
)
"""Those of them that ask a running service, and need neither the internet nor a second machine."""
RUN = re.compile(r"(curl|sleep|JOB=)")
"""How a command begins that speaks to the service. The others install, start or copy something."""
WORDS_CAME = """until grep -qs '"content":"[^"]' answer.txt; do sleep 0.1; done"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The service with an echo that answers to the demo model's name, at a pace one can interrupt."""
    with Stack({DEMO: {"tokens_per_second": 200}}, default_model=DEMO) as stack:
        yield stack


def run(command: list[str], folder: Path) -> str:
    """What the command writes. Fails the test when it fails."""
    (folder / ".curlrc").write_text("fail-with-body\nmax-time = 300\n")
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "CURL_HOME": str(folder), "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(block: Block, url: str, folder: Path) -> str:
    assert ADDRESS in block.text, f"{block} does not say where it connects to"
    return run([sys.executable, "-c", block.text.replace(ADDRESS, url)], folder)


def run_console(page: Path, url: str, folder: Path) -> str:
    """All commands of a page that speak to the service, in order, in one shell."""
    if shutil.which("curl") is None:
        assert not os.environ.get("CI"), "CI needs curl"
        pytest.skip("there is no curl")
    typed = [command for block in blocks(page, "console") for command in commands(block) if RUN.match(command)]
    # What people wait for is the first words of an answer, however fast the machine is.
    typed = [WORDS_CAME if command.startswith("sleep") else command for command in typed]
    script = "set -ex\n" + "\n".join(typed).replace(ADDRESS, url)
    return run(["sh", "-c", script], folder)


PYTHON = [block for name in TYPED for block in blocks(ROOT / name, "python")]
CONSOLE = [name for name in TYPED if any("$ curl" in block.text for block in blocks(ROOT / name, "console"))]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_example_runs(block: Block, stack: Stack, tmp_path: Path) -> None:
    """In a fresh interpreter, and it prints something."""
    assert run_python(block, stack.url, tmp_path).strip()


@pytest.mark.parametrize("name", [name for name in CONSOLE if name != JOURNEY])
def test_the_curl_lines_of_a_page_work(name: str, stack: Stack, tmp_path: Path) -> None:
    """No status of 400 and above, and the model's words come back."""
    said = run_console(ROOT / name, stack.url, tmp_path)
    assert DEMO in said
    assert '"error":{' not in said


def test_getting_started_leads_from_an_answer_to_a_cancelled_job(stack: Stack, tmp_path: Path) -> None:
    """Every curl line works, and the job the page follows is seen running, then cancelled."""
    said = run_console(ROOT / JOURNEY, stack.url, tmp_path)
    assert '"finish_reason":"stop"' in said
    assert re.findall(r'"state":"(\w+)"', said) == ["running", "running", "cancelled"]
    assert "job_cancelled" in (tmp_path / "answer.txt").read_text()


@pytest.mark.full
def test_the_lines_of_the_command_line_work(stack: Stack, tmp_path: Path) -> None:
    """All of that page, one after the other: what it calls ID is the job of the first answer."""
    typed = [command for block in blocks(ROOT / COMMAND_LINE, "console") for command in commands(block)]
    script = "\n".join(typed).replace(".venv/bin/rockchipllama", f"{sys.executable} -m ops.cli.main")
    asked = [sys.executable, "-m", "ops.cli.main", "run", DEMO, "Name a river.", "--json"]
    variables = {
        **environment.for_child({"HOME": str(tmp_path), "ROCKCHIPLLAMA_SERVICE_URL": stack.url}),
        "ROCKCHIPLLAMA_MODELS_DIR": str(stack.folder / "models"),
    }
    job = json.loads(subprocess.run(asked, env=variables, capture_output=True, check=True, input=b"").stdout)["job"]
    long = {"model": DEMO, "messages": [{"role": "user", "content": "x" * 3000}]}
    body = {"endpoint": "/v1/chat/completions", "body": long}
    begin = f"import httpx; print(httpx.post('{stack.url}/v1/jobs', json={body!r}).json()['id'])"
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [
            "bash",
            "-ec",
            "set -x\n"
            + script.replace("cancel ID", f'cancel $({sys.executable} -c "{begin}")').replace(" ID", f" {job}"),
        ],
        cwd=tmp_path,
        env=variables,
        input="/stats\n/bye\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert len(typed) > 12 and "Traceback" not in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("name", ADMINISTRATION)
def test_the_lines_for_administrators_work(name: str, stack: Stack, tmp_path: Path) -> None:
    """Those of a page that ask the running service, one after the other, on a board and a model that are there."""
    lines = [
        line for language in ("console", "bash") for block in blocks(ROOT / name, language) for line in typed(block)
    ]
    chosen = [line for line in lines if ASKS.match(line)]
    assert len(chosen) > 1
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    ask = partial(httpx.post, f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT)
    # Another page has had the board drained and resumed.
    job = eventually(lambda: reply if (reply := ask()).is_success else None, what="an answer")
    for old, new in {" ID": f" {job.headers['x-job-id']}", "qwen3:0.6b": DEMO, "second": "test-board"}.items():
        chosen = [line.replace(old, new) for line in chosen]
    # The first key is made where the service runs; over HTTP there must be one already.
    where = {"REDIS_URL": stack.redis_url} if "keys" in chosen[0] else {"SERVICE_URL": stack.url}
    settings = {"MODELS_DIR": str(stack.folder / "models"), **where}
    script = "set -x\n" + "\n".join(chosen).replace(".venv/bin/rockchipllama", f"{sys.executable} -m ops.cli.main")
    try:
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=tmp_path,
            env=environment.for_child({f"ROCKCHIPLLAMA_{setting}": value for setting, value in settings.items()}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        stack.redis.delete(keys.API_KEYS)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def typed(block: Block) -> list[str]:
    """The lines of a block that are typed, without what a shell passes over."""
    lines = commands(block) if block.language == "console" else block.text.splitlines()
    return [line.partition("  #")[0].rstrip() for line in lines]


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "toml")], ids=str)
def test_what_a_page_puts_into_a_file_is_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As settings of the service, else as a manifest, beside the files that it names."""
    if tomllib.loads(block.text).keys() <= {setting.name for setting in configuration.declared()}:
        (tmp_path / "rockchipllama.toml").write_text(block.text)
        monkeypatch.setenv("ROCKCHIPLLAMA_CONFIG", str(tmp_path / "rockchipllama.toml"))
        configuration.check()
        return
    named = re.findall(r'"([\w.-]+\.(?:rkllm|gguf|jinja|txt))"', block.text)
    for file in named if re.search("^(file|base) =", block.text, re.MULTILINE) else ["weights.rkllm", *named]:
        (tmp_path / file).write_text("Hello")
    (tmp_path / "manifest.toml").write_text(block.text)
    base = Model(id="base", engine="rkllm", folder=tmp_path, path=tmp_path / "weights.rkllm")
    read_manifest(tmp_path / "manifest.toml", lambda _: base)


class Up:
    """`rockchipllama up` as the README starts it, with what it says."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "ops.cli.main", "up", "--port", "0", "--data-dir", str(folder / "data")]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*command, "--models-dir", str(ROOT / "models")],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._over = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._over.wait(LIMIT), self.lines

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                self._over.set()
        self._over.set()

    @property
    def url(self) -> str:
        return next(line.split()[1] for line in self.lines if line.startswith("  api"))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT)


@pytest.mark.model
def test_the_readme_on_the_demo_model(tmp_path: Path) -> None:
    """`up` says what the page shows, the page's examples work on the real model, and Ctrl-C ends it all."""
    demo_model("llamacpp")
    readme = ROOT / "README.md"
    up = Up(tmp_path)
    try:
        shown = next(block for block in blocks(readme, "text") if block.text.startswith("RockchipLlama"))
        # A model that is loaded between two looks of the API is never seen on its way.
        said, page = (
            [masked(line) for line in lines if not line.startswith("Loading")]
            for lines in (up.lines, shown.text.splitlines())
        )
        assert said == page
        for block in blocks(readme, "python"):
            assert len(run_python(block, up.url, tmp_path).split()) > 3
        assert '"delta":{"content":' in run_console(readme, up.url, tmp_path)
    finally:
        code = up.stop()
    assert code == 0


def masked(line: str) -> str:
    """The line without what differs from machine to machine: numbers, and paths."""
    return re.sub(r"\d[\d.]*", "N", re.sub(r"(?<![\w.])/(?!/)[\w./-]+(?=,| |$)", "PATH", line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path) -> None:
    """Each script is there, and each command and option of `rockchipllama` is one."""
    for block in blocks(page, "console"):
        for command in commands(block):
            for part in re.split(r"&&|\||#.*", command):
                check_command(part.split(), str(block))


def check_command(words: list[str], where: str) -> None:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if not words or not (words[0].startswith("ops/") or words[0].endswith("rockchipllama")):
        return
    known = get_command(app)
    if words[0].startswith("ops/"):
        assert (ROOT / words[0]).exists(), where
        if words[0] != "ops/run":
            return
        # `--offline` is for the installation alone; everything else goes to `up`.
        words = ["rockchipllama", "up", *(word for word in words[1:] if word != "--offline")]
    for word in words[1:]:
        if not word.startswith("-") and word in getattr(known, "commands", {}):
            known = known.commands[word]  # type: ignore[attr-defined]
    options = {option for parameter in known.params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in options | {"--help"}, f"{where}: {word}"
