"""`rockchipllama run` and `chat`, against a running service."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ops import environment
from ops.bench.model.report import read_report
from ops.bench.perplexity import NoPerplexity, measure
from ops.chat.answer import frames
from ops.chat.session import _turn
from ops.service import Service
from tests.stack import LIMIT, Stack, eventually


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A fast echo, and one that can be interrupted."""
    with Stack({"echo": {"tokens_per_second": 5000}, "slow": {"tokens_per_second": 20}}, default_model="echo") as stack:
        yield stack


def run(
    stack: Stack, *words: str, given: bytes = b"", code: int = 0, url: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run the command through pipes, where it must say nothing that only a terminal understands."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", *words, "--url", url or stack.url],
        env=environment.for_child({"TERM": "xterm-256color"}),
        input=given,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"\x1b" not in done.stderr + done.stdout and b"Traceback" not in done.stderr
    return done


class Terminal:
    """The command in a terminal: what it has written so far, and a keyboard."""

    def __init__(self, *words: str, **variables: str) -> None:
        self._main, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli.main", *words],
            env=environment.for_child({"TERM": "xterm", "COLUMNS": "200", **variables}),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(terminal)
        self.seen = b""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # that is how the end of a terminal reads
            while more := os.read(self._main, 65536):
                self.seen += more

    def type(self, text: str) -> int:
        """Press these keys; how much was seen before."""
        before = len(self.seen)
        os.write(self._main, text.encode())
        return before

    def wait(self, text: str, after: int = 0) -> int:
        """Until this was written, behind the first `after` bytes; how many bytes there are up to its end."""
        eventually(lambda: text.encode() in self.seen[after:], what=f"{text!r} in {self.seen[after:]!r}")
        return self.seen.index(text.encode(), after) + len(text.encode())

    def command(self, line: str, said: str) -> None:
        """Type a line, and wait for what is said to it and for the prompt: what is typed before that is shown twice."""
        self.wait("\n>>> ", self.wait(said, self.type(f"{line}\n")))

    def close(self) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(LIMIT)
        self._reading.join(LIMIT)
        os.close(self._main)
        return code


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_prompt_and_what_is_piped_in_are_answered(stack: Stack) -> None:
    """The answer and nothing else goes out; with --json all there is to know."""
    assert run(stack, "run", "echo", "Say this:", given=b"one\ntwo").stdout == b"Say this:\n\none\ntwo\n"
    found = json.loads(run(stack, "run", "echo", "--json", "--max-tokens", "2", given=b"abc").stdout)
    assert (found["content"], found["finish_reason"], found["usage"]["completion_tokens"]) == ("ab", "length", 2)
    assert found["timings"]["predicted_n"] == 2 and len(found["job"]) == 22


def test_what_cannot_be_asked_is_one_line(stack: Stack) -> None:
    """With the exit code of what went wrong."""
    refused = run(stack, "run", "nobody", "x", code=1).stderr
    assert refused.count(b"\n") == 1 and b"There are: echo, slow." in refused
    run(stack, "run", "echo", code=2)
    away = run(stack, "run", "echo", "x", url="http://127.0.0.1:1", code=1).stderr
    assert b"does not answer at http://127.0.0.1:1" in away and away.count(b"\n") == 1


def newest(stack: Stack) -> tuple[str, str]:
    """Model and state of the job that was accepted last."""
    [job] = httpx.get(f"{stack.url}/v1/jobs", params={"limit": 1}, timeout=LIMIT).json()["data"]
    return job["model"], job["state"]


@pytest.mark.parametrize(
    ("words", "sent", "code"),
    [
        (("run", "slow", "x" * 2000), signal.SIGINT, 130),
        (("run", "slow", "x" * 2000), signal.SIGHUP, 129),
        (("chat", "slow"), signal.SIGTERM, 143),
    ],
)
def test_an_interrupted_answer_ends_its_job(
    stack: Stack, words: tuple[str, ...], sent: signal.Signals, code: int
) -> None:
    """However it is interrupted; the service was asked for time to come back, and does not take it."""
    with subprocess.Popen(
        [sys.executable, "-m", "ops.cli.main", *words, "--url", stack.url],
        env=environment.for_child({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write(b"x" * 2000 + b"\n" if words[0] == "chat" else b"")
        running.stdin.close()
        running.stdin = None
        assert running.stdout.read(3) == b"xxx"
        running.send_signal(sent)
        _, said = running.communicate(timeout=LIMIT)
    assert running.returncode == code and b"Traceback" not in said
    eventually(lambda: newest(stack) == ("slow", "cancelled"), what="the end of its job")


def test_a_conversation_in_a_terminal(stack: Stack, tmp_path: Path) -> None:
    """Several lines, settings, an answer that is stopped, what is kept, and what was typed the last time."""
    history, saved = tmp_path / "history", tmp_path / "said.json"
    terminal = Terminal("chat", "echo", "--url", stack.url, ROCKCHIPLLAMA_CHAT_HISTORY=str(history))
    terminal.wait(">>> ")
    terminal.wait("\n>>> ", terminal.type('"""first\nsecond"""\n'))
    terminal.command("/model", "echo")
    terminal.command("/stats", "tokens/s")
    terminal.command("/set temperature hot", "is a number")
    terminal.command("/nonsense", "There is no /nonsense")
    terminal.command("/model slow", "slow")
    before = terminal.type("y" * 900 + "\n")
    terminal.wait("yyy", before + 1000)  # behind what was typed
    before = terminal.type("\x03")
    terminal.wait("Stopped.", before)
    terminal.wait("Written", terminal.type(f"/save {saved}\n"))
    terminal.type("\x04")
    assert terminal.close() == 0
    said = [(each["role"], each["content"]) for each in json.loads(saved.read_text())["messages"]]
    assert said[:3] == [("user", "first\nsecond"), ("assistant", "first\nsecond"), ("user", "y" * 900)]
    assert said[3][0] == "assistant" and 3 <= len(said[3][1]) < 900
    assert "/set temperature hot" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == stat.S_IMODE(saved.stat().st_mode) == 0o600
    eventually(lambda: newest(stack) == ("slow", "cancelled"), what="the end of its job")


def test_an_answer_goes_on_when_the_service_comes_back(stack: Stack) -> None:
    """To the letter, behind what was read; and the conversation goes on after it."""
    text = "".join(f"{number:03}," for number in range(20))
    with subprocess.Popen(
        [sys.executable, "-m", "ops.cli.main", "chat", "slow", "--url", stack.url],
        env=environment.for_child({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what follows stays in the pipe, where `communicate` looks
    ) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        running.stdin.write(f"{text}\n".encode())
        begun = b""
        while len(begun) < 8 and (more := running.stdout.read(8 - len(begun))):
            begun += more
        assert begun == text[:8].encode()
        stack.kill("api")
        while b"Waiting for it" not in (line := running.stderr.readline()):
            assert line, "it does not wait"
        stack.start("api")
        said, _ = running.communicate(b"/model echo\nand on\n", timeout=LIMIT)
    assert said.decode() == f"{text[8:]}\nand on\n"
    assert running.returncode == 0


def test_a_refused_turn_costs_nothing_of_the_conversation(stack: Stack) -> None:
    """What was said before is in the next request, what was refused is not."""
    words = "one\n/set temperature -1\ntwo\n/set temperature\n/set temperature default\nthree\n/save said.json\n"
    assert stack.folder.is_dir()
    done = run(stack, "chat", "echo", given=words.replace("said.json", str(stack.folder / "said.json")).encode())
    assert done.stdout == b"one\nthree\n" and b"'temperature'" in done.stderr
    assert b"\ntemperature -1.0\ntemperature is left to the model.\n" in done.stderr
    saved = json.loads((stack.folder / "said.json").read_text())["messages"]
    assert [each["content"] for each in saved] == ["one", "one", "three", "three"]


@pytest.mark.parametrize("typed", ['"""\nfirst\nsecond\n"""', '"""first\nsecond"""'])
def test_fences_are_no_part_of_a_text(typed: str) -> None:
    """On the lines of the text, or on lines of their own."""
    lines = iter(typed.splitlines())
    assert _turn(lambda _: next(lines)) == "first\nsecond"


def test_frames_are_read_with_their_places() -> None:
    """An id belongs to the frame behind it, and to no other."""
    lines = ["id: 1-5", 'data: {"a": 1}', "", ": position 3", "data: [DONE]", ""]
    assert list(frames(lines)) == [("1-5", '{"a": 1}'), ("", "[DONE]")]


def begun(stack: Stack, text: str) -> str:
    """A job that nobody waits for."""
    body = {"model": "slow", "messages": [{"role": "user", "content": text}]}
    asked = {"endpoint": "/v1/chat/completions", "body": body}
    return str(httpx.post(f"{stack.url}/v1/jobs", json=asked, timeout=LIMIT).json()["id"])


def test_a_job_is_followed_from_its_beginning(stack: Stack) -> None:
    """By whoever knows its id: as text for people, each event for programs; and it is in the list."""
    job = begun(stack, "twelve bytes")
    done = run(stack, "attach", job)
    assert done.stdout == b"twelve bytes\n" and b"Started on test-board" in done.stderr and b"12 said" in done.stderr
    events = [json.loads(line) for line in run(stack, "attach", job, "--json").stdout.splitlines()]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["type"], events[-1]["type"]) == ("queued", "finished")
    listed = json.loads(run(stack, "jobs", "--json", "--state", "finished").stdout)
    assert {job: "finished"}.items() <= {each["id"]: each["state"] for each in listed}.items()
    assert f"{job}  " in run(stack, "jobs").stdout.decode()
    told = run(stack, "why", job).stdout.decode()
    assert "decode on test-board: 12 tokens" in told and "in all, finished" in told
    assert b"state" in run(stack, "jobs", "--state", "nonsense", code=2).stderr


def test_what_the_service_is_at(stack: Stack) -> None:
    """Once through a pipe; in a terminal kept up to date until somebody types q."""
    job = begun(stack, "w" * 6000)
    eventually(
        lambda: httpx.get(f"{stack.url}/v1/jobs/{job}", timeout=LIMIT).json()["phase"] == "decode", what="decode"
    )
    found = json.loads(run(stack, "top", "--json").stdout)
    assert [board["id"] for board in found["boards"]] == ["test-board"]
    assert {"echo", "slow"} == {queue["id"] for queue in found["queues"]}
    assert [each["id"] for each in found["jobs"]] == [job]
    once = run(stack, "top", "--once").stdout.decode()
    assert job in once and "test-board" in once and "decode" in once
    terminal = Terminal("top", "--url", stack.url)
    terminal.wait(job)
    httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", timeout=LIMIT)
    terminal.wait("Nothing runs")
    terminal.type("q")
    assert terminal.close() == 0


@pytest.mark.full
def test_a_model_is_looked_at_loaded_and_unloaded(stack: Stack) -> None:
    """By any of its names; one that is not there is a sentence."""
    assert json.loads(run(stack, "models", "info", "echo", "--json").stdout)["id"] == "echo"
    shown = run(stack, "models", "info", "echo").stdout.decode()
    assert "context_length    8192\n" in shown and "None" not in shown
    assert run(stack, "models", "load", "echo").stdout == b"'echo' is loaded on 'test-board'.\n"
    eventually(lambda: stack.state("echo") == "loaded", what="loading")
    assert b"echo on test-board: loaded" in run(stack, "models", "loaded").stdout
    assert b"context 8192" in run(stack, "models", "available").stdout
    assert run(stack, "models", "unload", "echo").stdout == b"'echo' is unloaded from 'test-board'.\n"
    eventually(lambda: stack.state("echo") != "loaded", what="unloading")
    assert b"nobody" in run(stack, "models", "load", "nobody", code=1).stderr


def complete(line: str) -> list[str]:
    """What bash is offered behind this line."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("rockchipllama"))],
        env=environment.for_child(
            {"_ROCKCHIPLLAMA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.full
def test_names_are_completed(stack: Stack) -> None:
    """With those of the service that the line names; one that is not there spoils no prompt."""
    assert complete("rockchipllama models inf") == ["info"]
    assert complete(f"rockchipllama run --url {stack.url} sl") == ["slow"]
    assert complete("rockchipllama run --url http://127.0.0.1:1 sl") == []


def test_what_is_mistyped_spoils_no_prompt() -> None:
    """The shell asks what may follow before anything is refused."""
    assert "cancel" in complete("rockchipllama jobs nothing ")


def test_a_job_is_cancelled(stack: Stack) -> None:
    """Whoever follows it hears so, which is no good end; what is over cannot be cancelled, nor what is not there followed."""
    job = begun(stack, "z" * 6000)
    assert f"{job} is cancelled.\n".encode() == run(stack, "jobs", "cancel", job).stdout
    assert b"Cancelled" in run(stack, "attach", job, code=1).stderr
    over = begun(stack, "")
    run(stack, "attach", over)
    assert b"can no longer be cancelled" in run(stack, "jobs", "cancel", over, code=1).stderr
    assert run(stack, "attach", "nothing", code=1).stderr.count(b"\n") == 1


def test_models_are_measured_through_pipes(stack: Stack, tmp_path: Path) -> None:
    """`bench model`: every set, one at a time and two at once; files beside the table, and an echo's answers are not good."""
    performance = [{"id": "p", "prompt": "Say it.", "max_tokens": 5}]
    checks = [{"kind": "matches", "what": "knows", "pattern": "^42$"}]
    quality = [{"id": "q", "prompt": "What is it?", "max_tokens": 50, "checks": checks}]
    long = {
        "tokens": [256, 99999],
        "line": "Line {number}.",
        "things": [""],
        "needle": "N",
        "question": "?",
        "max_tokens": 3,
    }
    talk = [{"id": "t", "max_tokens": 5, "turns": [{"prompt": "One."}, {"prompt": "Two."}]}]
    reference = {"text": "word " * 100, "prompt_tokens": 64, "max_tokens": 9}
    prompts = {
        "performance": performance,
        "quality": quality,
        "long_context": long,
        "multi_turn": talk,
        "reference": reference,
    }
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    asked = ("echo", "--prompts", str(tmp_path / "prompts.json"), "--out", str(tmp_path / "out"))
    done = run(stack, "bench", "model", *asked, "--runs", "2", "--concurrency", "2")
    assert (
        b"Short prompts, 2 at once" in done.stdout
        and b"Checks passed: 67%, over 1 prompt; 0 of 1 answers" in done.stdout
    )
    [written] = (tmp_path / "out").glob("echo-*.json")
    found = read_report(written)
    assert found.valid and found.options.concurrency == [1, 2] and found.options.prompts == "prompts.json"
    count = Counter((each.set, each.concurrency) for each in found.samples)
    assert count == {(name, 1): 2 for name in ("performance", "reference", "long_context")} | {
        ("performance", 2): 4,
        ("quality", 1): 1,
        ("multi_turn", 1): 4,
    }
    assert all(each.error is None and each.board == "test-board" for each in found.samples)
    read = {each.prompt_tokens - each.cached_tokens for each in found.samples if each.set == "reference"}  # type: ignore[operator]
    assert read == {64}
    second = next(each for each in found.samples if each.prompt == "t/2")
    assert second.cached_tokens and [each["role"] for each in second.messages] == ["user", "assistant", "user"]
    assert any("99999 tokens were left out" in note for note in found.notes)
    run(stack, "bench", "model", "--model", "nobody", code=1)


def test_an_echo_has_no_perplexity(stack: Stack, tmp_path: Path) -> None:
    """It has no logits, says what it was told, and is refused for that over HTTP."""
    (tmp_path / "text").write_text("Some text.")
    with pytest.raises(NoPerplexity, match="its engine has no logits"):
        measure(Service(stack.url), "echo", tmp_path / "text", 10, 64)
