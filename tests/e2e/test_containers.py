"""The service of docker-compose.yml, in a real Docker: healthy, watched, and losing nothing when a board is stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.settings import ROOT
from tests.releases.make import ARCHIVE, NOTE, RELEASES
from tests.stack import eventually, free_port

MODEL = "smollm2-135m-instruct"
LIMIT = 300.0
"""Seconds for what takes seconds on an idle machine."""
LIMITS = {"api": 220, "worker": 300, "all-in-one": 400}
"""Megabytes of an image."""
OFFICIAL_BASE = 150
"""Megabytes, about, of the base that all of them share, as its makers publish it for arm64: that for x86-64 has 25 fewer, and a
stand-in may be larger than either."""

pytestmark = [pytest.mark.full, pytest.mark.model, pytest.mark.timeout(1800)]


class Compose:
    """One project of containers."""

    def __init__(self, models: Path, user: int) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        # A fast machine would end the answer in the time that a stopping worker is given.
        hurried = models.with_suffix(".yml")
        hurried.write_text('services: {board: {environment: {ROCKCHIPLLAMA_WORKER_GRACE: "0"}}}\n')
        self._environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("ROCKCHIPLLAMA_", "COMPOSE_"))
            },
            "COMPOSE_PROJECT_NAME": "rockchipllama-test",
            "COMPOSE_PROFILES": "monitoring",
            "COMPOSE_FILE": os.pathsep.join(["docker-compose.yml", str(hurried)]),
            "ROCKCHIPLLAMA_PUBLISH": self.url.removeprefix("http://"),
            "ROCKCHIPLLAMA_MODELS": str(models),
            "RUN_AS": str(user),
        }

    def __call__(self, *words: str) -> str:
        """What `docker compose` prints."""
        return self._run("docker", "compose", *words)

    def docker(self, *words: str) -> str:
        return self._run("docker", *words)

    def board(self, name: str) -> str:
        """The id of a board's container: a board in a container is called after it."""
        [found] = [each for each in self("ps", "--all", "--quiet", "board").split() if each.startswith(name)]
        return found

    def _run(self, *words: str) -> str:
        done = subprocess.run(words, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Redis, the API, one board and Flower, as a user of no name whose models are in a folder of the machine."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("NOTHING OF THE CONTAINERS WAS TRIED: there is no Docker here, or it does not run")
    if (ROOT / ".env").exists():
        pytest.skip("NOTHING OF THE CONTAINERS WAS TRIED: the file .env would change what is tried")
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models" / MODEL, models / MODEL)
    user = os.getuid() or 12345
    for path in (models, *models.rglob("*")):
        os.chown(path, user, 0)
    compose = Compose(models, user)
    try:
        compose("build", "api", "board")
        compose("up", "--wait", "redis", "api", "board", "flower")
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "5")


def body(**fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 400, "ignore_eos": True, **fields}


@pytest.fixture(scope="module")
def answer(compose: Compose) -> str:
    """The whole of it, when nothing goes wrong."""
    reply = httpx.post(f"{compose.url}/v1/chat/completions", json=body(), timeout=LIMIT)
    assert reply.status_code == 200, reply.text
    content: str = reply.json()["choices"][0]["message"]["content"]
    assert len(content) > 150
    return content


class Stream:
    """The answer once more, as it comes."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._http = httpx.stream("POST", f"{compose.url}/v1/chat/completions", json=body(stream=True), timeout=LIMIT)
        reply = self._http.__enter__()
        self._job = reply.headers["x-job-id"]
        self._lines = reply.iter_lines()
        self.text = ""

    def read(self, characters: int | None = None) -> str:
        """Until there are so many, or to its end."""
        for line in self._lines:
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                self.text += chunk["choices"][0]["delta"].get("content") or "" if chunk["choices"] else ""
            if characters is not None and len(self.text) >= characters:
                return self.text
        self._http.__exit__(None, None, None)
        return self.text

    def job(self) -> dict[str, object]:
        found: dict[str, object] = httpx.get(f"{self._compose.url}/v1/jobs/{self._job}", timeout=LIMIT).json()
        return found


def test_everything_is_healthy_and_answers(compose: Compose, answer: str) -> None:
    """Each container by its own account, none of them started twice."""
    rows = [json.loads(line) for line in compose("ps", "--format", "json").splitlines()]
    assert {row["Service"]: row["Health"] for row in rows} == dict.fromkeys(
        ("redis", "api", "board", "flower"), "healthy"
    )
    ids = compose("ps", "--quiet").split()
    assert set(compose.docker("inspect", "--format", "{{.RestartCount}}", *ids).split()) == {"0"}
    assert answer


def test_flower_shows_it(compose: Compose) -> None:
    """The board's worker, and the calls it was given."""
    where = compose("port", "flower", "5555").strip()
    query = {"draw": 1, "start": 0, "length": 10, "search[value]": "", "order[0][column]": 0, "order[0][dir]": "asc"}

    def shown() -> list[str]:
        # Workers tell it of calls from when it has asked them to.
        httpx.post(f"{compose.url}/v1/chat/completions", json=body(max_tokens=1), timeout=LIMIT).raise_for_status()
        reply = httpx.get(
            f"http://{where}/tasks/datatable", params={**query, "columns[0][data]": "name"}, timeout=LIMIT
        )
        return [row["name"] for row in reply.json()["data"]]

    eventually(lambda: f"{MODEL}, interactive" in shown(), limit=LIMIT, what="Flower shows the call")
    assert f"{MODEL}@" in httpx.get(f"http://{where}/workers", timeout=LIMIT).text


def test_prometheus_scrapes_it(compose: Compose, answer: str) -> None:
    """With the configuration that comes with the project; and it is healthy itself."""
    try:
        compose("up", "--wait", "prometheus")
    except AssertionError as error:
        if re.search("pull|resolve|registry", str(error)):
            pytest.skip(f"PROMETHEUS WAS NOT TRIED: its image cannot be had. {str(error)[-300:]}")
        raise
    where = compose("port", "prometheus", "9090").strip()

    def value(expression: str) -> float:
        reply = httpx.get(f"http://{where}/api/v1/query", params={"query": expression}, timeout=LIMIT).json()
        return float(reply["data"]["result"][0]["value"][1]) if reply["data"]["result"] else 0.0

    eventually(lambda: value('up{job="rockchipllama"}') == 1, limit=LIMIT, what="Prometheus reaches the API")
    eventually(lambda: value("sum(rockchipllama_jobs_total)") > 0, limit=LIMIT, what="Prometheus has counted a job")


def test_the_only_board_is_stopped_and_its_answer_goes_on_when_it_is_back(compose: Compose, answer: str) -> None:
    """In the same stream, as if nothing had been."""
    stream = Stream(compose)
    begun = stream.read(40)
    board = compose.board(str(stream.job()["board"]))
    compose.docker("stop", "--time", "60", board)
    assert stream.job()["state"] == "queued", "it was handed back, and waits"
    compose.docker("start", board)
    assert begun and stream.read() == answer
    assert stream.job()["state"] == "finished"


def test_one_of_two_boards_is_stopped_and_the_other_goes_on(compose: Compose, answer: str) -> None:
    """The stream notices a pause at most."""
    compose("up", "--wait", "--no-recreate", "--scale", "board=2", "board")
    stream = Stream(compose)
    stream.read(40)
    first = str(stream.job()["board"])
    compose.docker("stop", "--time", "60", compose.board(first))
    assert stream.read() == answer
    job = stream.job()
    assert job["state"] == "finished" and job["board"] != first


def test_nothing_can_be_written_but_volumes(compose: Compose) -> None:
    """By a user of no name, who may do nothing that root may."""
    script = "touch /tmp/a /app/data/a && ! touch /app/a 2>/dev/null && grep CapEff /proc/self/status && id -u"
    for service in ("api", "board"):
        capabilities, user = compose("exec", "-T", service, "sh", "-c", script).splitlines()
        assert capabilities.split()[1].strip("0") == "" and user == str(os.getuid() or 12345)


@pytest.mark.parametrize("target", LIMITS)
def test_an_image_is_small(compose: Compose, target: str) -> None:
    """Measured by what it adds to its base."""
    [base] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    if target == "all-in-one":
        compose.docker("build", "--target", target, "--tag", "rockchipllama-all-in-one", ".")
    try:
        compose.docker("image", "inspect", base)
    except AssertionError:
        compose.docker("pull", base)
    sizes = compose.docker("image", "inspect", "--format", "{{.Size}}", base, f"rockchipllama-{target}").split()
    adds = (int(sizes[1]) - int(sizes[0])) / 1e6
    print(f"{target}: {adds:.0f} MB more than {base}, which has {int(sizes[0]) / 1e6:.0f} MB here")
    assert OFFICIAL_BASE + adds <= LIMITS[target]


def test_one_container_goes_on_with_what_an_earlier_release_left(compose: Compose) -> None:
    """As it is told to on its command line, where no setting of its image says so: it is healthy, and its jobs end."""
    [*_, oldest] = sorted((found.parent for found in RELEASES.glob(f"*/{ARCHIVE}")), reverse=True)
    note = json.loads((oldest / NOTE).read_text())
    port, name, image = free_port(), "rockchipllama-test-one", "rockchipllama-all-in-one"
    confined = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--volume", f"{name}:/app/data"]
    elsewhere = ["--data-dir", "/app/data/elsewhere"]
    compose.docker("build", "--target", "all-in-one", "--tag", image, ".")
    try:
        archive = ["--volume", f"{oldest}:/left:ro", image, "restore", f"/left/{ARCHIVE}"]
        compose.docker("run", "--rm", *confined, *archive, *elsewhere)
        published = ["--init", "--name", name, "--publish", f"127.0.0.1:{port}:8080", "--env", "ROCKCHIPLLAMA_LEASE=3"]
        compose.docker("run", "--detach", *confined, *published, image, "up", *elsewhere)

        def health() -> str:
            return compose.docker("inspect", "--format", "{{.State.Health.Status}}", name).strip()

        eventually(lambda: health() == "healthy", limit=LIMIT, what="it counts as healthy")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as http:
            http.headers["authorization"] = f"Bearer {note['keys']['kept']}"
            for state in ("running", "paused", "waiting"):
                job = f"/v1/jobs/{note['jobs'][state]['id']}"
                eventually(lambda job=job: http.get(job).json()["state"] == "finished", limit=LIMIT, what=state)  # type: ignore[misc]
                page = http.get(f"{job}/events", headers={"accept": "application/json"}).json()
                assert "".join(event.get("text", "") for event in page["data"]) == note["jobs"][state]["text"]
        compose.docker("stop", "--time", "60", name)
        assert compose.docker("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0"
    finally:
        for words in (["rm", "--force", "--volumes", name], ["volume", "rm", "--force", name]):
            compose.docker(*words)
