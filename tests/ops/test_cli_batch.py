"""`rockchipllama batch`, against a running service."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from ops import environment
from ops import service as service_module
from ops.batch.pace import Pace, duration
from ops.batch.plot import Moment, svg
from ops.batch.prompts import InputError, Wishes, format_of, write
from ops.service import Service, ServiceError
from tests.stack import LIMIT, Stack, eventually


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A fast echo, and one that takes its time."""
    with Stack({"echo": {"tokens_per_second": 5000}, "slow": {"tokens_per_second": 2}}, default_model="echo") as stack:
        yield stack


def batch(stack: Stack, *words: str, given: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run the command, which must end with this code, and say nothing that only a terminal understands."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "batch", *words, "--url", stack.url],
        env=environment.for_child({}),
        input=given,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"\x1b" not in done.stderr + done.stdout and b"Traceback" not in done.stderr
    return done


def lines(path: Path) -> dict[str, Any]:
    """The lines of an output by their names."""
    return {line["custom_id"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def request(name: str, text: str, **more: Any) -> bytes:
    """A line as the API takes it."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


def test_a_table_is_answered_row_by_row(stack: Stack, tmp_path: Path) -> None:
    """From the file to its answers with one command; nothing is ever written over."""
    table, out = tmp_path / "reviews.csv", tmp_path / "answers.jsonl"
    table.write_text('\ufeffid,review\na,"fine, really"\nb,"über\nzwei Zeilen"\n', encoding="utf-8")
    words = ("run", str(table), "-o", str(out), "--template", "Kind? {review}", "--model", "echo")
    done = batch(stack, *words)
    said = {name: line["response"]["body"]["choices"][0]["message"]["content"] for name, line in lines(out).items()}
    assert set(said) == {"a", "b"}
    assert "fine, really" in said["a"] and "zwei Zeilen" in said["b"]
    assert b"completed: 2 of 2 answered" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "reviews.csv"]
    assert b"is there already" in batch(stack, *words, code=1).stderr


def test_a_batch_is_submitted_watched_listed_and_brought_in_two_parts(stack: Stack, tmp_path: Path) -> None:
    """The id is all that `submit` writes; a download goes on behind what is there already."""
    given = b"".join(request(f"r{n}", f"Say {n}") for n in range(5))
    identity = batch(stack, "submit", "-", "--wait", given=given).stdout.decode().strip()
    assert identity.startswith("batch_")
    seen = [json.loads(line) for line in batch(stack, "watch", identity, "--json").stdout.splitlines()]
    assert seen[-1]["status"] == "completed" and seen[-1]["request_counts"]["completed"] == 5
    assert set(seen[-1]["progress"]) == {"tokens_per_second", "seconds_left", "boards"}
    listed = json.loads(batch(stack, "list", "--json").stdout)
    assert identity in [each["id"] for each in listed]
    assert f"{identity}  " in batch(stack, "list").stdout.decode()
    whole = batch(stack, "results", identity).stdout
    assert whole.count(b"\n") == 5
    out = tmp_path / "out.jsonl"
    # What is there is not fetched again, so a mark in it stays.
    (tmp_path / f"out.jsonl.{seen[-1]['output_file_id']}.part").write_bytes(b"#" + whole[1:100])
    batch(stack, "results", identity, "-o", str(out))
    assert out.read_bytes() == b"#" + whole[1:]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_terminal_sees_a_bar_and_a_plot_is_drawn(stack: Stack, tmp_path: Path) -> None:
    """How far it is, in place; and afterwards a drawing that any browser opens."""
    source, plot = tmp_path / "in.txt", tmp_path / "how.svg"
    source.write_text("".join(f"Say {n}\n" for n in range(3)))
    words = ["run", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", "slow", "--max-tokens", "4"]
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "ops.cli.main", "batch", *words, "--url", stack.url, "--plot", str(plot)]
    environ = environment.for_child({"TERM": "xterm", "COLUMNS": "120"})
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stderr=terminal) as running:
        os.close(terminal)
        seen = b""
        with contextlib.suppress(OSError):  # that is how the end of a terminal reads
            while more := os.read(main, 65536):
                seen += more
        assert running.wait(60) == 0, seen.decode()
    os.close(main)
    assert b"\x1b[" in seen and b"3/3" in seen and b"completed: 3 of 3 answered" in seen
    drawn = ElementTree.parse(plot)
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 2
    assert b"end in .svg" in batch(stack, "watch", "batch_x", "--plot", "how.png", code=2).stderr


def test_what_was_not_answered_is_beside_the_answers_and_in_the_exit_code(stack: Stack, tmp_path: Path) -> None:
    """With the words that its endpoint has for it."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(request("good", "Hi") + request("long", "word " * 9000))
    done = batch(stack, "run", str(source), "-o", str(out), code=1)
    assert set(lines(out)) == {"good"} and b"1 of 2 answered, 1 not" in done.stderr
    assert lines(tmp_path / "out.errors.jsonl")["long"]["response"]["status_code"] == 400


@pytest.mark.parametrize("wait", [("--wait",), ()], ids=["watched", "submitted"])
def test_a_line_that_is_wrong_is_told_by_its_number(stack: Stack, wait: tuple[str, ...]) -> None:
    """No answer is made then; nor need anybody wait for one to hear it."""
    done = batch(stack, "submit", "-", *wait, given=request("a", "x") + request("b", "x", model="nobody"), code=1)
    assert b"failed: 0 of 0 answered" in done.stderr and b"line 2: " in done.stderr and b"nobody" in done.stderr


def test_a_batch_is_cancelled(stack: Stack) -> None:
    """And is over soon, which is no success."""
    given = b"".join(f"Say {n}\n".encode() for n in range(50))
    made = batch(stack, "submit", "-", "--format", "text", "--model", "slow", given=given)
    identity = made.stdout.decode().strip()
    eventually(
        lambda: httpx.get(f"{stack.url}/v1/batches/{identity}", timeout=LIMIT).json()["status"] == "in_progress",
        what="its beginning",
    )
    assert b"is not over yet" in batch(stack, "results", identity, code=1).stderr
    assert batch(stack, "cancel", identity).stdout.startswith(identity.encode())
    assert b"cancelled" in batch(stack, "watch", identity, code=1).stderr
    assert b"cannot be cancelled" in batch(stack, "cancel", identity, code=1).stderr


def test_a_file_is_had_from_any_byte_on(stack: Stack) -> None:
    """As HTTP has it for those who go on with a download; a range of another kind is answered with the whole."""
    upload = httpx.post(
        f"{stack.url}/v1/files",
        data={"purpose": "batch"},
        files={"file": ("f", io.BytesIO(b"0123456789"))},
        timeout=LIMIT,
    )
    content = f"{stack.url}/v1/files/{upload.json()['id']}/content"
    rest = httpx.get(content, headers={"range": "bytes=4-"}, timeout=LIMIT)
    assert (rest.status_code, rest.content, rest.headers["content-range"]) == (206, b"456789", "bytes 4-9/10")
    assert httpx.get(content, headers={"range": "bytes=10-"}, timeout=LIMIT).status_code == 416
    for other in ("bytes=0-", "bytes=-3", "lines=1-"):
        whole = httpx.get(content, headers={"range": other}, timeout=LIMIT)
        assert (whole.status_code, whole.content) == (200, b"0123456789")


def test_whoever_stops_watching_stops_nothing(stack: Stack) -> None:
    """And is told how to watch again."""
    given = b"".join(request(f"r{n}", "take your time", model="slow") for n in range(50))
    identity = batch(stack, "submit", "-", given=given).stdout.decode().strip()
    watching = subprocess.Popen(
        [sys.executable, "-m", "ops.cli.main", "batch", "watch", identity, "--url", stack.url],
        env=environment.for_child({}),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert watching.stderr is not None
    assert b" of " in watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert f"batch watch {identity}" in said.decode() and "Traceback" not in said.decode()
    assert httpx.get(f"{stack.url}/v1/batches/{identity}", timeout=LIMIT).json()["status"] in (
        "validating",
        "in_progress",
    )
    batch(stack, "cancel", identity)


def test_a_line_at_fault_is_told_by_its_number_in_the_input(stack: Stack) -> None:
    """Also behind empty ones."""
    given = request("a", "x", model="echo") + b"\n \n" + request("b", "x", model="nobody")
    said = batch(stack, "submit", "-", "--wait", given=given, code=1).stderr
    assert b"line 4: The model 'nobody'" in said
    said = batch(
        stack, "submit", "-", "--wait", "--format", "text", "--model", "nobody", given=b"\n\na\n", code=1
    ).stderr
    assert b"line 3: The model 'nobody'" in said


def test_a_batch_is_asked_for_again_while_the_service_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same key, so that there is one of it; what is refused is not asked for again."""
    monkeypatch.setattr(service_module, "PAUSE", 0.0)
    asked: list[str] = []
    answers = [503, 503, 200, 400]

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.headers["idempotency-key"])
            self.send_response(answers[len(asked) - 1])
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        client = Service(f"http://127.0.0.1:{server.server_port}")
        assert client.create("file", "/v1/completions", "24h") == {}
        with pytest.raises(ServiceError):
            client.create("file", "/v1/completions", "24h")
        server.shutdown()
        thread.join(LIMIT)
    assert len(asked) == 4 and len(set(asked[:3])) == 1 and asked[3] != asked[0]


def test_a_service_that_is_not_there_is_a_sentence() -> None:
    """With what to do."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "batch", "list", "--url", "http://127.0.0.1:1"],
        env=environment.for_child({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1 and "does not answer at http://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def made(data: bytes, form: str, **wishes: Any) -> list[dict[str, Any]]:
    """The requests that are made of an input."""
    to = io.BytesIO()
    _, count = write(io.BytesIO(data), form, Wishes(**wishes), to)
    found = [json.loads(line) for line in to.getvalue().splitlines() if line]
    assert len(found) == count
    return found


def test_a_text_is_a_prompt_a_line() -> None:
    """Named by its line in the file, empty ones left out; what is the same for all is in each."""
    found = made(b"one\r\n\r\ntwo", "text", system="Be brief.", max_tokens=5, model="m", template="<{prompt}>")
    assert [line["custom_id"] for line in found] == ["line-1", "line-3"]
    assert found[1]["body"] == {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<two>"}],
    }


def test_a_value_is_not_a_template_itself() -> None:
    """Braces in the input are text."""
    found = made(b"a,b\n{b},x\n", "csv", template="{a} {b} {{}}")
    assert found[0]["body"]["messages"][0]["content"] == "{b} x {{}}"
    assert found[0]["custom_id"] == "row-1"


def test_a_model_is_put_where_none_is_named() -> None:
    """Whole lines keep all else, to the byte where nothing is added."""
    named, unnamed = request("a", "x", model="m"), request("b", "x")
    assert [line["body"]["model"] for line in made(named + unnamed, "jsonl", model="n")] == ["m", "n"]
    to = io.BytesIO()
    endpoint, _ = write(io.BytesIO(named.replace(b"chat/", b"") + unnamed), "jsonl", Wishes(), to)
    assert (endpoint, to.getvalue()) == ("/v1/completions", named.replace(b"chat/", b"") + unnamed)


@pytest.mark.parametrize(
    ("data", "form", "wishes", "said"),
    [
        (b"", "text", {}, "empty"),
        (b"\n\n", "jsonl", {}, "empty"),
        (b"\xff\xfe", "text", {}, "UTF-8"),
        (b"a\nb\n", "csv", {}, "{prompt} in the template"),
        (b"a\nb\n", "csv", {"template": "{c}"}, "there is {a}"),
        (b"a\nb\n", "csv", {"template": "no place"}, "without a place"),
        (b"a,b\n1\n", "csv", {"template": "{a}"}, "Row 1"),
        (b'a\n"1\n', "csv", {"template": "{a}"}, "breaks off"),
        (b"hello\n", "jsonl", {}, "Line 1 is no request"),
        (b"{}\n", "jsonl", {"template": "x"}, "--template"),
    ],
)
def test_an_input_of_which_nothing_can_be_made(data: bytes, form: str, wishes: dict[str, Any], said: str) -> None:
    """Told before anything is sent."""
    with pytest.raises(InputError, match=said.replace("{", r"\{").replace("}", r"\}")):
        made(data, form, **wishes)


def test_the_form_is_known_by_the_name() -> None:
    """Or has to be said."""
    assert [format_of(name, None) for name in ("a.jsonl", "b.CSV", "c.txt", "-")] == ["jsonl", "csv", "text", "jsonl"]
    assert format_of("a.jsonl", "text") == "text"
    for name, form in (("a.doc", None), ("a.csv", "table")):
        with pytest.raises(InputError, match="--format"):
            format_of(name, form)


def test_a_plot_shows_the_pace_between_two_looks() -> None:
    """Of a long batch as many as can be told apart; of what was not watched there is none."""
    seen = [Moment(float(second), second, 10 * second) for second in range(5000)]
    drawn = ElementTree.fromstring(svg(seen, "a <b>"))
    done, speed = (each.attrib["points"].split() for each in drawn.findall("{http://www.w3.org/2000/svg}polyline"))
    assert 100 < len(done) < 130 and len(speed) == 2 * (len(done) - 1)
    assert len({point.split(",")[1] for point in speed}) == 1  # the pace was even
    assert float(done[0].split(",")[1]) > float(done[-1].split(",")[1])
    with pytest.raises(ServiceError, match="nothing to draw"):
        svg(seen[:1], "")


def test_the_pace_is_that_of_the_last_minute() -> None:
    """So that a start that took long, or a night without a board, does not spoil the time that is left."""

    def at(done: int, tokens: int) -> dict[str, Any]:
        return {
            "request_counts": {"total": 1000, "completed": done - 1, "failed": 1},
            "usage": {"output_tokens": tokens},
        }

    pace = Pace()
    pace.look(at(1, 0), 0.0)
    assert (pace.tokens, pace.left) == (None, None)
    pace.look(at(1, 0), 900.0)
    assert (pace.tokens, pace.left) == (0.0, None)
    for second in range(901, 1001):
        pace.look(at(1 + 2 * (second - 900), 10 * (second - 900)), float(second))
    assert pace.tokens == 10.0
    assert pace.left == (1000 - 201) / 2
    assert [duration(seconds) for seconds in (12.4, 187, 18000)] == ["12 s", "3:07", "5:00:00"]
