"""The command line itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import typer
from typer.main import get_command

from ops import environment
from ops.chat.screen import note
from ops.chat.session import HELP
from ops.cli.main import app, main
from ops.cli.service_address import address_of
from ops.up import tokens
from ops.up.lock import FILE, DataDirLock
from ops.up.sharing import TokenRefused


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", *words],
        env=environment.for_child(variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_loads_nothing_heavy() -> None:
    """Neither settings nor web nor queue: help is what people ask for while they wait."""
    script = (
        "import sys, runpy\nsys.argv = ['rockchipllama', 'up', '--help']\n"
        "try: runpy.run_module('ops.cli.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'fastapi', 'celery', 'redis', 'xllamacpp', 'tasks'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment.for_child({}), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Ctrl-C stops all of it" in done.stdout


@pytest.mark.parametrize("words", [("nonsense",), ("up", "--port", "abc"), ("worker",), ("up", "--nonsense")])
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    """With a sentence and no traceback."""
    done = run(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_values_are_named_as_the_documentation_names_them() -> None:
    """In capitals, in the usage and in what is said of a value that is missing."""
    done = run("run")
    assert " run [OPTIONS] {MODEL} [PROMPT]" in done.stderr and "Missing argument 'MODEL'" in done.stderr
    waiting = [get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for param in command.params:
            name = param.metavar if not getattr(param, "is_flag", False) else None
            assert name is None or name == name.upper(), f"{command.name} {param.name}: {name}"
            assert name is not None or param.param_type_name == "option", f"{command.name} {param.name}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pull", "x"), "`rockchipllama models pull`"),
        (("bench", "fleet", "--profile", "rk9:zz"), "--profile: 'rk9:zz' is no profile"),
        (("run", "tiny"), "`rockchipllama chat tiny`"),
    ],
)
def test_what_is_meant_is_told_in_place_of_what_was_typed(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands as Ollama has them, names that are none, and a conversation."""
    monkeypatch.setattr("sys.argv", ["rockchipllama", *words])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert told in capsys.readouterr().err


def test_streams_as_they_are_found_bring_no_traceback() -> None:
    """A disk that is full, streams that are closed, a terminal that knows no more than ASCII."""
    started = f"{sys.executable} -m ops.cli.main"
    script = f"{started} settings > /dev/full; echo $?; {started} settings <&- >&- 2>&-; echo $?; {started} up --help; echo $?"
    environ = environment.for_child({"PYTHONIOENCODING": "ascii"})
    done = subprocess.run(
        ["/bin/sh", "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "rockchipllama: what comes out cannot be written: No space left on device.\n"
    lines = done.stdout.splitlines()
    assert (lines[:2], lines[-1]) == (["1", "0"], "0")


@pytest.mark.parametrize("words", [("run", "tiny", "\udcff"), ("models", "info", "\udcff")])
def test_what_is_no_text_is_a_sentence(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell hands on any bytes."""
    monkeypatch.setenv("ROCKCHIPLLAMA_SERVICE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("sys.argv", ["rockchipllama", *words])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "rockchipllama: what was typed is no text in UTF-8.\n"


def test_a_conversations_notes_are_broken_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As wide as the terminal; in a pipe they are whole."""
    monkeypatch.setenv("COLUMNS", "40")
    note("a sentence that is longer than a line\nand another one that is as long as that")
    assert capsys.readouterr().err.count("\n") == 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    note(HELP, 20)
    told = capsys.readouterr().err.splitlines()
    assert max(map(len, told)) <= 40 and "          system message" in told
    note("There is none; to have one made, type `rockchipllama keys create NAME --scope admin` there.")
    assert "keys create NAME --scope admin`\n" in capsys.readouterr().err  # whole, to be copied


def test_a_wide_bind_without_keys_is_refused_before_anything_starts() -> None:
    """With the two lines that mend it."""
    done = run("up", "--host", "0.0.0.0", "--port", "0", "--data-dir", "/nonexistent/data")
    assert done.returncode == 2
    assert "ROCKCHIPLLAMA_API_KEYS=" in done.stderr
    assert "ROCKCHIPLLAMA_TRUSTED_NETWORKS=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "named"), [("up", "/nope"), ("up", "simulator-9"), ("board", "/nope")])
def test_a_library_that_is_not_there_is_told_before_anything_starts(command: str, named: str) -> None:
    """Like any other setting that cannot be used: named, with where it came from, and once."""
    done = run(command, "--data-dir", "/nonexistent/data", ROCKCHIPLLAMA_RKLLM_LIBRARY=named)
    assert done.returncode == 2
    assert done.stderr.count(f"The setting rkllm_library is '{named}' (from ROCKCHIPLLAMA_RKLLM_LIBRARY)") == 1
    assert "Traceback" not in done.stderr


def test_a_mistyped_address_is_told_as_such() -> None:
    """Not as one that would let everybody in."""
    done = run("up", "--host", "bogus.invalid", "--port", "0", "--data-dir", "/nonexistent/data")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "'bogus.invalid' is neither an address nor a name that is known here" in done.stderr
    assert "--host" in done.stderr


def test_the_version_is_one_line() -> None:
    """Name and number."""
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("rockchipllama ")
    assert done.stdout.count("\n") == 1


def test_every_command_says_what_it_does() -> None:
    """One sentence at least."""
    assert all(command.callback is not None and command.callback.__doc__ for command in app.registered_commands)


def test_a_package_that_a_part_goes_without_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container of the API, which holds no engine; one of our own modules that is missing is a defect."""

    def needs(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr("ops.cli.main.app", lambda: needs("tokenizers.models"))
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "'tokenizers.models', which is not installed here" in capsys.readouterr().err
    monkeypatch.setattr("ops.cli.main.app", lambda: needs("ops.nothing"))
    with pytest.raises(ModuleNotFoundError):
        main()


def test_the_service_that_runs_here_is_found_wherever_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the word that it left in its data directory; one that has ended is none, and one that is named is asked instead."""
    monkeypatch.setenv("ROCKCHIPLLAMA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ROCKCHIPLLAMA_PORT", "8123")
    assert address_of(None, None) == ("http://127.0.0.1:8123", None)
    with DataDirLock(tmp_path) as lock:
        lock.write("http://127.0.0.1:8291")
        assert address_of(None, None)[0] == "http://127.0.0.1:8291"
    ended = subprocess.Popen(["true"])
    ended.wait()
    word = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(word.replace(f'"pid": {os.getpid()}', f'"pid": {ended.pid}'))
    assert address_of(None, None)[0] == "http://127.0.0.1:8123"
    (tmp_path / FILE).write_text(word)
    monkeypatch.setenv("ROCKCHIPLLAMA_SERVICE_URL", "board.local:80")
    assert address_of(None, None)[0] == "http://board.local:80"


def test_a_token_of_no_possible_name_is_wrong_use() -> None:
    """One that is taken is not."""
    with pytest.raises(TokenRefused, match="1 to 32 characters") as refused:
        tokens.create(redis.Redis(), "A_b")
    assert refused.value.usage and not TokenRefused("It is taken.").usage


def test_an_address_of_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one that is meant."""
    monkeypatch.setenv("ROCKCHIPLLAMA_SERVICE_URL", "ftp://board")
    with pytest.raises(typer.BadParameter, match="http or https, and not ftp"):
        address_of(None, None)
