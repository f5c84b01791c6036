"""Models that come, are made and go, by Ollama's own client."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from tasks.api_keys import Scope
from tasks.blobs import FOLDER
from tasks.commands import CommandCode, Copy, Create, Delete, PullProgress, PullStep
from tasks.errors import CommandFailed, ModelDown, UnknownModel
from tests.api.site import Site, site
from tests.stack import LIMIT, eventually

DIGEST = "sha256:" + "ab" * 32


def progress(step: PullStep, number: int, **more: Any) -> PullProgress:
    return PullProgress(pull="p", model="qwen3:0.6b", number=number, step=step, **more)


PULLED = [
    progress(PullStep.CHOOSING, 1),
    progress(PullStep.CHOOSING, 2),
    progress(PullStep.CHOOSING, 3, message="chose the file for rk3588"),
    progress(PullStep.FETCHING, 4, file="a.rkllm", digest=DIGEST, completed=5, total=10),
    progress(PullStep.FETCHING, 5, file="a.rkllm", digest=DIGEST, completed=10, total=10),
    progress(PullStep.FETCHING, 6, file="tokenizer.json", completed=3),
    progress(PullStep.VERIFYING, 7, digest=DIGEST),
    progress(PullStep.PLACING, 8),
    progress(PullStep.DONE, 9, id="qwen3-0.6b"),
]


@pytest.fixture
def client(place: Site) -> Iterator[ollama.Client]:
    with ollama.Client(host=place.url, timeout=LIMIT) as client:
        yield client


def test_a_pull_tells_how_far_it_is(client: ollama.Client, place: Site) -> None:
    """In Ollama's words, each once, and with what clients make their bars of."""
    place.world.shelf.progress = list(PULLED)
    lines = [(line.status, line.completed, line.total) for line in client.pull("qwen3:0.6b", stream=True)]
    assert lines == [
        ("pulling manifest", None, None),
        ("chose the file for rk3588", None, None),
        ("pulling abababababab", 5, 10),
        ("pulling abababababab", 10, 10),
        ("pulling tokenizer.json", 3, None),
        ("verifying sha256 digest", None, None),
        ("writing manifest", None, None),
        ("success", None, None),
    ]
    assert client.pull("qwen3:0.6b").status == "success"
    told = place.http.post("/api/pull", json={"model": "qwen3:0.6b"}).text.splitlines()
    files = [line["file"] for line in map(json.loads, told) if "completed" in line]
    assert files == ["a.rkllm", "a.rkllm", "tokenizer.json"]  # for people, whom a digest tells nothing


def test_a_pull_may_be_meant_for_one_board(place: Site) -> None:
    """Ollama's own clients name none."""
    place.world.shelf.progress = list(PULLED)
    for body in ({"model": "a"}, {"model": "a", "board": "two"}):
        assert place.http.post("/api/pull", json=body).status_code == 200
    assert place.world.shelf.asked == [("a", ""), ("a", "two")]


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        (CommandCode.SOURCE_MISSING, 404, "pull model manifest: file does not exist"),
        (CommandCode.SOURCE_FORBIDDEN, 403, "It says why."),
        (CommandCode.DOES_NOT_FIT, 400, "It says why."),
        (CommandCode.NO_SPACE, 507, "It says why."),
        ("board_away", 502, "It says why."),
    ],
)
def test_a_pull_that_fails_says_why(client: ollama.Client, place: Site, code: str, status: int, says: str) -> None:
    """As a status before the first line, and as a line after it."""
    place.world.shelf.progress = [CommandFailed(code, "It says why.")]
    with pytest.raises(ollama.ResponseError, match=says) as caught:
        client.pull("x")
    assert caught.value.status_code == status
    place.world.shelf.progress = [*PULLED[:4], CommandFailed(code, "It says why.")]
    seen: list[Any] = []
    with pytest.raises(ollama.ResponseError, match=says):
        seen.extend(client.pull("x", stream=True))
    assert len(seen) == 3


def test_no_board_to_pull_onto(client: ollama.Client, place: Site) -> None:
    """Is told at once."""
    place.world.shelf.progress = [ModelDown("x", "no board is there to fetch it.")]
    with pytest.raises(ollama.ResponseError, match="no board is there") as caught:
        client.pull("x", stream=True).__next__()
    assert caught.value.status_code == 503


def test_a_model_is_made_of_another(client: ollama.Client, place: Site) -> None:
    """With what is its own."""
    lines = list(
        client.create(
            "brief",
            from_="tiny:latest",
            system="Be brief.",
            template="{{ messages[0].content }}",
            parameters={"temperature": 0.1, "top_k": -1, "stop": ["x"], "num_ctx": 512, "num_gpu": 1},
            stream=True,
        )
    )
    assert [line.status for line in lines] == ["writing manifest", "success"]
    assert place.world.shelf.told == [
        Create(
            model="brief",
            base="tiny",
            system="Be brief.",
            template="{{ messages[0].content }}",
            sampling={"temperature": 0.1, "top_k": 0},
            stop=("x",),
            context_length=512,
        )
    ]
    assert client.create("brief", from_="tiny").status == "success"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "neither 'from' or 'files' was specified"),
        ({"from": "tiy"}, 404, "model 'tiy' not found"),
        ({"from": "tiny", "template": "{{ .Prompt }}"}, 400, "Go's language"),
        ({"from": "tiny", "template": "{{- range .Messages }}{{ end }}"}, 400, "Go's language"),
        ({"from": "tiny", "quantize": "q4_K_M"}, 400, "'quantize' is not supported here"),
        ({"from": "tiny", "messages": [{"role": "user", "content": "x"}]}, 400, "'messages' is not supported here"),
        ({"files": {"a.gguf": "ab"}}, 400, "invalid digest format"),
        ({"from": "tiny", "files": {"a.gguf": DIGEST}}, 400, "exclude each other"),
        ({"from": "tiny", "adapters": {"a": DIGEST}}, 400, "'adapters' go with the 'files'"),
        ({"from": "tiny", "parameters": {"seed": 3}}, 400, "parameter 'seed' is not supported"),
        ({"from": "tiny", "parameters": {"top_k": "x"}}, 400, 'option "top_k" must be of type integer'),
    ],
)
def test_what_cannot_be_made_is_refused(place: Site, body: dict[str, Any], status: int, says: str) -> None:
    """By name, before any board is asked."""
    reply = place.http.post("/api/create", json={"model": "new", **body})
    assert reply.status_code == status
    assert says in reply.json()["error"]
    assert place.world.shelf.told == []


def test_models_are_copied_and_removed(client: ollama.Client, place: Site) -> None:
    """By whatever name they go."""
    assert client.copy("tiny:latest", "other").status == "success"
    assert client.delete("org/tiny").status == "success"
    assert place.world.shelf.told == [Copy("tiny", "other"), Delete("org/tiny")]


def test_what_a_board_refuses_is_told(place: Site) -> None:
    """With a status of its own."""
    place.world.shelf.refusal = CommandFailed(CommandCode.MODEL_IN_USE, "'brief' is made from it.")
    reply = place.http.request("DELETE", "/api/delete", json={"model": "tiny"})
    assert (reply.status_code, reply.json()) == (409, {"error": "'brief' is made from it."})
    place.world.shelf.refusal = UnknownModel("tiy", "tiny")
    reply = place.http.request("DELETE", "/api/delete", json={"model": "tiy"})
    assert (reply.status_code, reply.json()) == (404, {"error": "model 'tiy' not found, did you mean 'tiny'?"})
    reply = place.http.post("/api/copy", json={"source": "tiy", "destination": "x"})
    assert (reply.status_code, reply.json()["error"][:21]) == (404, 'model "tiy" not found')


@pytest.fixture
def kept(place: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie that are sent."""
    monkeypatch.setattr(place.world.blobs, "_models_dir", tmp_path)
    return tmp_path / FOLDER


def test_a_model_is_made_of_files(client: ollama.Client, place: Site, kept: Path, tmp_path: Path) -> None:
    """They are sent first, and named by their digests."""
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" + bytes(range(256)) * 4000)
    missing = place.http.head("/api/blobs/sha256:" + hashlib.sha256(file.read_bytes()).hexdigest())
    digest = client.create_blob(file)
    assert (missing.status_code, place.http.head(f"/api/blobs/{digest}").status_code) == (404, 200)
    assert [path.read_bytes() for path in kept.iterdir()] == [file.read_bytes()]
    assert client.create("new", files={"a.gguf": digest}, system="Hm.").status == "success"
    assert place.world.shelf.told == [Create(model="new", files={"a.gguf": digest}, system="Hm.")]


def test_a_file_that_is_not_what_was_announced_is_not_kept(place: Site, kept: Path) -> None:
    """Neither another one, nor one that was cut off."""
    reply = place.http.post(f"/api/blobs/{DIGEST}", content=b"x" * 1000)
    assert (reply.status_code, "not what was announced" in reply.json()["error"]) == (400, True)
    with socket.create_connection(("127.0.0.1", place.port)) as line:
        line.sendall(f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx".encode())
        eventually(lambda: list(kept.iterdir()), what="the beginning of a file")
    eventually(lambda: not list(kept.iterdir()), what="its end")
    assert place.http.post("/api/blobs/sha256:../../etc/passwd", content=b"x").status_code in (400, 404)
    assert place.http.head("/api/blobs/sha256:ab").status_code == 400


def test_a_file_too_large_for_the_disk_is_refused(place: Site, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is sent where its size is told, and in the middle otherwise."""
    usage = shutil.disk_usage(kept.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000_500))
    for content in (b"x" * 600, (b"x" * 600 for _ in range(2))):
        reply = place.http.post(f"/api/blobs/{DIGEST}", content=content)
        assert (reply.status_code, "Make room" in reply.json()["error"]) == (507, True)
        assert list(kept.iterdir()) == []


def test_only_administrators_change_models() -> None:
    """A key that may chat may not."""
    with site(drain=0) as place:
        place.world.api_keys.make("chats", Scope.INFERENCE)
        place.world.api_keys.make("rules", Scope.ADMIN)
        asked = [
            ("POST", "/api/pull", {"model": "x", "stream": False}),
            ("POST", "/api/create", {"model": "x", "from": "tiny", "stream": False}),
            ("POST", "/api/copy", {"source": "tiny", "destination": "x"}),
            ("DELETE", "/api/delete", {"model": "tiny"}),
        ]
        place.world.shelf.progress = list(PULLED)
        for key, status in (("chats", 403), ("rules", 200)):
            for method, path, body in asked:
                headers = {"authorization": f"Bearer {key}"}
                assert place.http.request(method, path, json=body, headers=headers).status_code == status, path
        headers = {"authorization": "Bearer chats"}
        assert place.http.post(f"/api/blobs/{DIGEST}", content=b"x", headers=headers).status_code == 403
