"""Commands that ask a service, in this process and over HTTP: what they say, and the codes they end with."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest

from api.answer import Waiting
from ops.chat import attached
from ops.cli.main import main
from ops.service import Service
from tasks.api_keys import Scope
from tasks.card import Card
from tasks.commands import Delete, PullProgress, PullStep
from tasks.errors import CommandFailed, UnknownModel
from tasks.events import Failed, FailureCode, TextDelta, Timings, Usage
from tasks.jobs import EndedClaim, JobState
from tasks.presence import Presence
from tasks.settings import ROOT
from tests.api.scripted import CARD, END, JOB, TINY
from tests.api.scripted_services import view
from tests.api.site import Site

Command: TypeAlias = Callable[..., tuple[int, str, str]]
"""Runs one; its exit code, and what it wrote where."""
HELD = "no board that has its model is there"


@pytest.fixture
def command(place: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Against the scripted service, with a pipe on each side."""
    monkeypatch.setenv("ROCKCHIPLLAMA_SERVICE_URL", place.url)

    def run(*words: str, typed: bytes = b"", **variables: str) -> tuple[int, str, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["rockchipllama", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_a_question_that_waits_says_for_what(place: Site, command: Command) -> None:
    """Once each time that the place or the reason changes, beside the answer and not in it."""
    waits = (Waiting(2, 40.0), Waiting(2, 38.0), Waiting(None), Waiting(1, 0.0, HELD), Waiting(1, None, HELD))
    place.relay.play(*waits, TextDelta("Hello"), END)
    code, out, err = command("run", "tiny", "Say it.")
    assert (code, out) == (0, "Hello\n")
    assert err.splitlines() == ["Waiting: position 2, about 40 s.", f"Waiting: position 1, {HELD}."]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_a_notice_has_no_place_in_an_answer_that_shares_its_file(
    place: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may stand before it."""
    monkeypatch.setattr(sys, "argv", ["rockchipllama", "run", "tiny", "Say it.", "--url", place.url])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    held = Waiting(1, None, HELD)
    place.relay.play(Waiting(2), TextDelta("The story goes"), held, TextDelta(" on."), END)
    with (tmp_path / "both").open("a") as out, (tmp_path / "both").open("a") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit, match="0"):
            main()
    assert (tmp_path / "both").read_text() == "Waiting: position 2.\nThe story goes on.\n"


@pytest.mark.parametrize("shared", [True, False])
def test_a_notice_begins_a_line(place: Site, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Where the answer stands on the same screen; in a file it has no lines but its own."""
    screen = Screen()
    out = screen if shared else io.StringIO()
    monkeypatch.setattr(sys, "argv", ["rockchipllama", "run", "tiny", "Say it.", "--url", place.url])
    for name, stream in (("stdin", io.StringIO()), ("stdout", out), ("stderr", screen)):
        monkeypatch.setattr(sys, name, stream)
    place.relay.play(TextDelta("The story goes"), Waiting(1, None, HELD), TextDelta(" on."), END)
    with pytest.raises(SystemExit, match="0"):
        main()
    notice = f"Waiting: position 1, {HELD}.\n"
    said = f"The story goes\n{notice} on.\n" if shared else notice
    assert screen.getvalue() == said and (shared or out.getvalue() == "The story goes on.\n")


def test_a_model_that_is_not_there_is_refused_before_a_conversation(place: Site, command: Command) -> None:
    """Also one to go on with: the conversation stays with the model it has."""
    code, out, err = command("chat", "nosuch")
    assert (code, out) == (1, "") and "'nosuch' does not exist" in err and err.count("\n") == 1
    code, out, err = command("chat", "tiny", typed=b"/model nosuch\n/model\n")
    assert code == 0 and "'nosuch' does not exist" in err and "It stays with tiny." in err
    assert err.splitlines()[-2] == "tiny"


def test_what_is_no_text_ends_no_conversation(place: Site, command: Command) -> None:
    """One byte of another encoding, typed or piped."""
    place.relay.play(TextDelta("Hello"), END)
    code, out, err = command("chat", "tiny", typed=b"caf\xe9\nHi.\n")
    assert (code, out) == (0, "Hello\n") and err.count("no text in UTF-8") == 1
    code, _, err = command("run", "tiny", "Translate:", typed=b"caf\xe9")
    assert code == 2 and err.count("no text in UTF-8") == 1


def test_one_job_is_shown_with_what_can_be_done(place: Site, command: Command) -> None:
    """By its id alone, with what it waits for; a failed one with why. As JSON too, before the id or behind it."""
    place.world.roster.known = [msgspec.structs.replace(TINY, served=False, loaded=False, boards=())]
    code, out, _ = command("jobs", JOB)
    assert code == 0
    told = {line[:9].strip(): line[11:] for line in out.splitlines()}
    assert told["state"] == "queued, position 3, waits for board" and "boards resume" in told["to do"]
    assert (told["model"], told["lane"]) == ("tiny", "interactive") and HELD in told["waits for"]
    assert "ago" in told["accepted"]
    for words in (("jobs", "--json", JOB), ("jobs", JOB, "--json"), ("jobs", "show", JOB, "--json")):
        assert json.loads(command(*words)[1])["id"] == JOB
    place.world.jobs.job = view(
        state=JobState.FAILED,
        position=None,
        ended_at=1700000009.0,
        attempts=2,
        interruptions=("its worker died",),
        error=Failed(FailureCode.ENGINE_LOST, "It died twice."),
    )
    _, out, _ = command("jobs", JOB)
    assert "error      It died twice. (engine_lost)" in out and "broke off  its worker died" in out
    assert "rockchipllama why" in out


def test_options_before_a_command_are_not_forgotten(place: Site, command: Command) -> None:
    """They count for it, or are refused."""
    place.world.jobs.job = view(state=JobState.CANCELLED)
    assert command("jobs", "--url", place.url, "cancel", JOB)[0] == 0
    assert command("jobs", "--url", "127.0.0.1:1", "cancel", JOB)[0] == 1
    code, _, err = command("jobs", "--limit", "3", "cancel", JOB)
    assert code == 2 and "--limit" in err
    code, _, err = command("jobs", "nosuch")
    assert code == 2 and "neither a command nor the id of a job" in err


def test_models_that_no_board_can_use_are_told_with_the_reason(place: Site, command: Command) -> None:
    """Beside those that can be used, under their ids; where another board can use the same model, below that one."""
    place.world.roster.cards = [CARD]
    torn = {"torn": "torn.gguf is cut off.", "torn:q4": "torn.gguf is cut off.", "tiny": "tiny.gguf is empty."}
    names = {"torn": ("torn:q4",), "tiny": ()}
    place.world.roster.alive = [Presence(name="board:b2", board="b2", refused=torn, unusable=names)]
    found = {each["id"]: each for each in json.loads(command("models", "available", "--json")[1])}
    assert sorted(found) == ["tiny", "torn"] and found["torn"]["names"] == ["torn:q4"]
    assert [each["state"] for each in found["tiny"]["boards"]] == ["away", "unusable"]
    code, out, _ = command("models", "available")
    assert code == 0 and "torn\n  b2: unusable, torn.gguf is cut off.\n" in out and "None" not in out


def test_what_is_known_of_a_model_is_told_once(place: Site, command: Command) -> None:
    """No word twice, and notes as sentences."""
    card = msgspec.structs.replace(CARD, notes=("It is small.", "It is hot."), refuses={"seed": "it has no dice"})
    place.world.roster.known = [msgspec.structs.replace(TINY, card=card)]
    code, out, _ = command("models", "info", "tiny")
    names = [line[:16].strip() for line in out.splitlines()]
    assert code == 0 and "context_length    2048\n" in out and "loaded            yes\n" in out
    assert len({*names} - {"note"}) + 2 == len(names)
    assert out.endswith(
        "refuses           seed: it has no dice\nnote              It is small.\nnote              It is hot.\n"
    )


def test_keys_are_looked_after_over_http(place: Site, command: Command) -> None:
    """By an administrator's key, from anywhere; its options for this machine's Redis are refused beside an address."""
    code, out, _ = command("keys", "create", "far", "--scope", "admin", "--requests", "30", "--json")
    assert (code, json.loads(out)["key"], json.loads(out)["limits"]["requests"]) == (0, "far", 30)
    assert command("keys", "list")[0] == 1  # there is one now
    environ = {"ROCKCHIPLLAMA_SERVICE_KEY": "far"}
    assert command("keys", "create", "far", **environ)[0] == 1  # asked well, and taken
    assert "far" in command("keys", "list", **environ)[1]
    assert "20 tokens/min" in command("keys", "limit", "far", "--tokens", "20", **environ)[1]
    code, _, err = command("keys", "revoke", "nosuch", **environ)
    assert (code, err) == (1, "rockchipllama: There is none.\n")
    assert "At most 5 at once." in command("keys", "create", "tab", "--jobs", "5", **environ)[1]
    code, out, err = command("keys", "revoke", "tab", **environ)
    assert "opens nothing any more" in out and not err
    assert "without a key" in command("keys", "revoke", "far", **environ)[2]
    code, _, err = command("keys", "list", "--url", place.url, "--redis-url", "redis://127.0.0.1:1")
    assert code == 2 and "--redis-url" in err


def test_boards_are_listed_and_drained_over_http(place: Site, command: Command) -> None:
    """And who drains the last one with a model hears of it."""
    place.world.roster.alive = [Presence(name="board:rack/one", board="rack/one", version="1.0")]
    place.world.roster.cards = [Card(id="tiny", board="rack/one", engine="echo")]
    assert command("boards")[1].splitlines() == ["rack/one: version 1.0", "  tiny: unloaded, echo"]
    assert json.loads(command("boards", "--json")[1])[0]["id"] == "rack/one"
    assert re.search(
        r"^rack/one +- +- +- +-", command("top", TERM="dumb")[1], re.MULTILINE
    )  # nothing is known of its chip
    code, out, _ = command("boards", "drain", "rack/one")
    assert code == 0 and out.splitlines()[1].startswith("No other board that serves has tiny")


def test_settings_are_told_with_their_units(command: Command) -> None:
    """As they are, and as they were."""
    assert "queue_limit  100 jobs  by " in command("settings", "set", "queue_limit", "100")[1]
    shown = command("settings", "live")[1]
    assert "was 64 jobs" in shown and "\ndeadline            3600 s\n" in shown and "true s" not in shown
    units = {item["name"]: item["unit"] for item in json.loads(command("settings", "live", "--json")[1])}
    assert (units["queue_limit"], units["patience"], units["log_level"]) == ("jobs", "s", None)


def test_a_name_that_is_empty_is_asked_for(place: Site, command: Command) -> None:
    """Where it would be a part of a path, another one would be asked."""
    code, _, err = command("models", "info", "")
    assert code == 2 and err.count("\n") == 1 and "empty" in err


def test_a_model_is_pulled_and_removed_elsewhere(place: Site, command: Command) -> None:
    """Step by step as on this machine; what goes wrong there is a sentence here."""
    tells = partial(PullProgress, pull="p", model="qwen3:0.6b", file="weights.gguf", digest="sha256:0123456789abcdef")
    place.world.shelf.progress = [
        tells(number=1, step=PullStep.CHOOSING, message="weights.gguf, for the CPU."),
        tells(number=2, step=PullStep.FETCHING, completed=5_000_000, total=10_000_000),
        tells(number=3, step=PullStep.VERIFYING),
        tells(number=4, step=PullStep.DONE, id="qwen3-0.6b"),
    ]
    code, out, err = command("models", "pull", "qwen3:0.6b", "--board", "one")
    assert (code, out) == (0, "weights.gguf, for the CPU.\nReady: qwen3:0.6b\n")
    assert err == "  weights.gguf: 5 of 10 MB\n"
    assert place.world.shelf.asked[-1] == ("qwen3:0.6b", "one")
    code, out, _ = command("models", "pull", "qwen3:0.6b", "--url", place.url, "--json")
    steps = [json.loads(line) for line in out.splitlines()]
    assert [step["step"] for step in steps] == ["choosing", "fetching", "verifying", "done"]
    place.world.shelf.progress = [tells(number=1, step=PullStep.CHOOSING), CommandFailed("source_missing", "No such.")]
    assert command("models", "pull", "nosuch", "--url", place.url) == (1, "", "rockchipllama: No such.\n")
    place.world.shelf.progress = [CommandFailed("network", "The hub is away.")]
    code, _, err = command("models", "pull", "qwen3:0.6b", "--url", place.url)
    assert code == 1 and err.endswith("rockchipllama: The hub is away.\n")
    code, _, err = command("models", "pull", "qwen3:0.6b", "--url", place.url, "--soc", "rk3588")
    assert code == 2 and "--soc" in err
    assert command("models", "rm", "tiny", "--url", place.url)[:2] == (0, "Removed tiny from all boards.\n")
    assert place.world.shelf.told == [Delete("tiny")]
    place.world.shelf.refusal = UnknownModel("nosuch", "tiny")
    code, _, err = command("models", "rm", "nosuch", "--url", place.url)
    assert code == 1 and "nosuch" in err and "Traceback" not in err


class Waits(Service):
    """A job that waits for two looks, and has then ended."""

    def __init__(self) -> None:
        self.looks = 0

    def job(self, job: str) -> dict[str, Any]:
        """How it stands."""
        return {"position": 1}

    def why(self, job: str) -> dict[str, Any]:
        """What it waits for."""
        return {"why": f"{HELD}."}

    def events_page(self, job: str, after: int) -> dict[str, Any]:
        """Nothing, nothing, and its end."""
        self.looks += 1
        return {"data": [], "ended": self.looks > 3, "has_more": False}


def test_a_job_that_is_followed_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, instead of silence."""
    monkeypatch.setattr(attached, "SILENCE", 0.0)
    assert not list(attached.follow(Waits(), JOB))
    assert capsys.readouterr().err == f"Waiting: position 1, {HELD}.\n"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("run", "tiny", "Hi.", "--url", "http://me:secret@[::1"), 2, "is no address of a service"),
        (("run", "tiny", "Hi.", "--url", "http://127.0.0.1:99999"), 2, "is no address of a service"),
        (("settings", "set", "deadline", "NaN"), 2, "Invalid 'deadline'"),
        (("settings", "set", "queue_limit", "-5"), 2, "it must be at least 1"),
        (("settings", "set", "keep_alive", "-1"), 0, ""),
        (("settings", "set", "bogus", "1"), 2, "There is no setting 'bogus'"),
        (("settings", "unset", "queue_limt"), 2, "Did you mean 'queue_limit'?"),
        (("settings", "set", "deadline", "\udce9"), 2, "is no text in UTF-8"),
        (("run", "tiny", "caf\udce9"), 2, "is no text in UTF-8"),
        (("models", "load", "\udce9"), 2, "is no text in UTF-8"),
        (("boards", "--url", "http://a..b"), 2, "is no address of a service"),
        (("boards", "--url", f"http://{'a' * 300}"), 2, "is no address of a service"),
        (("boards", "--url", "http://xn--a.com"), 2, "is no address of a service"),
        (("bench", "fleet", "--profile", "rk3588:nope"), 2, "qwen3-0.6b:w8a8"),
        (("bench", "fleet", "--boards", "0"), 2, "--boards"),
        (("why", "../boards"), 1, "There is no job '../boards'"),
        (("batch", "submit", "README.md", "--format", "bogus"), 2, "'bogus' is no format"),
        (("bench", "model", "tiny", "--prompts", "/nowhere"), 2, "/nowhere cannot be read"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_what_is_typed_wrongly_is_told(words: tuple[str, ...], code: int, told: str, command: Command) -> None:
    """With a sentence, the right code, and nothing of a password."""
    ended, _, err = command(*words)
    assert ended == code and told in err and "Traceback" not in err and "secret" not in err


LISTINGS = [
    (("jobs",), "jobs"),
    (("jobs", JOB), "jobs"),
    (("why", JOB), "jobs"),
    (("top",), "jobs"),
    (("boards",), "boards"),
    (("keys", "list"), "command-line"),
    (("settings", "live"), "operations"),
    (("models", "info", "tiny"), "openai"),
    (("models", "available"), "models"),
    (("models", "list"), "command-line"),
    (("models", "recommend"), "command-line"),
    (("models", "du"), "command-line"),
    (("models", "prune"), "command-line"),
    (("runtime", "list"), "command-line"),
]
OPENAIS = {"owned_by", "created"}
"""Of models, as their API documents them."""


def test_what_programs_read_is_documented(place: Site, command: Command, tmp_path: Path) -> None:
    """Every listing is JSON, and its fields are named on the page that the command line's sends to."""
    place.world.roster.alive = [Presence(name="board:b1", board="b1", version="1.0")]
    place.world.roster.cards = [CARD]
    ended = EndedClaim(1.0, 2.0, "b1", "it stopped")
    place.world.jobs.job = view(usage=Usage(1, 1), timings=Timings(), claims=(ended,))
    for plain, scope in (("admin-key", Scope.ADMIN), ("user-key", Scope.INFERENCE)):
        place.world.api_keys.make(plain, scope)
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo/manifest.toml").write_text('engine = "echo"\n')
    environ = {"ROCKCHIPLLAMA_MODELS_DIR": str(tmp_path), "ROCKCHIPLLAMA_SERVICE_KEY": "admin-key"}
    for words, page in LISTINGS:
        code, out, err = command(*words, "--json", **environ)
        assert (code, err) == (0, ""), words
        pages = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in {page, "command-line", "boards"})
        named = re.findall(r"`([^`\n]+)`", " ".join(pages))
        told = set(_fields(json.loads(out))) - OPENAIS
        undocumented = told - set(re.findall(r"[a-z_]+", " ".join(named))) - {"echo", "b1"}
        assert told and not undocumented, (words, undocumented)


def _fields(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _fields(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _fields(each)
