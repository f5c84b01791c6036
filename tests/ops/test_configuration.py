"""Settings: which value wins, where it came from, and what a mistake is called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from ops import configuration, environment
from ops.configuration import ConfigurationError, without_password
from tasks.settings import TaskSettings

Settings = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in environment.ours():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "from_command_line", set())
    monkeypatch.chdir(tmp_path)


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`rockchipllama settings …` with these variables."""
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "settings", *words],
        env=environment.for_child(variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_stronger_source_wins_and_is_named(tmp_path: Path) -> None:
    """Default, file, environment, command line."""
    file = tmp_path / "my.toml"
    file.write_text("port = 1001\nqueue_limit = 7\nhost = '127.0.0.2'\n[aliases]\nshort = 'long'\n")
    done = run(
        "--json", "--port", "1003", "--config", str(file), ROCKCHIPLLAMA_PORT="1002", ROCKCHIPLLAMA_QUEUE_LIMIT="8"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert (rows["port"]["value"], rows["port"]["source"]) == (1003, "the command line")
    assert (rows["queue_limit"]["value"], rows["queue_limit"]["source"]) == (8, "ROCKCHIPLLAMA_QUEUE_LIMIT")
    assert (rows["host"]["value"], rows["host"]["source"]) == ("127.0.0.2", str(file))
    assert rows["aliases"]["value"] == {"short": "long"}
    assert rows["lease"]["source"] == "default"


def test_secrets_are_masked() -> None:
    """Neither keys nor a password inside a URL are shown, in either form."""
    secrets = {"ROCKCHIPLLAMA_API_KEYS": "sesame1,sesame2", "ROCKCHIPLLAMA_REDIS_URL": "redis://me:sesame3@host:1/0"}
    for words in ((), ("--json",)):
        done = run(*words, **secrets)
        assert done.returncode == 0, done.stderr
        assert "sesame" not in done.stdout + done.stderr
        assert "redis://me:********@host:1/0" in done.stdout


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        ((), {"ROCKCHIPLLAMA_PORT": "abc"}, "The setting port is 'abc' (from ROCKCHIPLLAMA_PORT)"),
        ((), {"ROCKCHIPLLAMA_QUEUE_LIMIT": "0"}, "The setting queue_limit is '0' (from ROCKCHIPLLAMA_QUEUE_LIMIT)"),
        (("--log-level", "loud"), {}, "The setting log_level is 'loud' (from the command line)"),
        ((), {"ROCKCHIPLLAMA_ALIASES": "{"}, "ROCKCHIPLLAMA_ALIASES must hold JSON"),
        ((), {"ROCKCHIPLLAMA_API_KEYS": "sesame here"}, "The setting api_keys (from ROCKCHIPLLAMA_API_KEYS)"),
        (("--config", "/no/such.toml"), {}, "The configuration file /no/such.toml cannot be read: No such file"),
    ],
)
def test_a_bad_value_is_one_sentence(words: tuple[str, ...], variables: dict[str, str], said: str) -> None:
    """It names setting, value and source; the exit code is 2 and nobody sees a traceback."""
    done = run(*words, **variables)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "sesame" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "1.5", "it must be a whole number. (Port to listen on; 0 takes a free one.)"),
        ("port", "70000", "it must be at most 65535."),
        ("log_level", "loud", "it must be 'debug', 'info', 'warning' or 'error'."),
        ("deadline", "inf", "it must be a number."),
        (
            "context_length",
            "100",
            "is '100' (from ROCKCHIPLLAMA_CONTEXT_LENGTH), which cannot be used: it must be a whole number of",
        ),
        ("preload", "maybe", "it must be true or false."),
        ("aliases", '{"a": 3}', "The setting aliases.a is '3'"),
        ("redis_url", "localhost", "it must begin with redis://, rediss://, unix:// or redis+sentinel://"),
        ("redis_url", "redis://:sesame@h:port", "is 'redis://:********@h:port'"),
        ("redis_url", "redis://h:1/jobs", "must have the number of a database"),
        ("redis_url", "redis://:ses/ame@h:1/0", "its port must be a number"),
        ("models_dir", "/caf\udce9", "it must be UTF-8"),
        ("redis_url", "unix://", "it must name a socket, as in unix:///run/valkey.sock"),
    ],
)
def test_a_bad_value_says_what_a_good_one_is(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, with what the setting is for; also where a password makes the address malformed."""
    monkeypatch.setenv(environment.variable(name), value)
    with pytest.raises(ConfigurationError) as refused:
        configuration.check()
    assert said in str(refused.value)
    assert not re.search("sesame|ses/|ame@", str(refused.value))


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:1/",
        "redis://h:1/2",
        "rediss://me:p%2Fw@h:1/0?ssl_cert_reqs=none",
        "unix:///run/x.sock?db=1",
    ],
)
def test_a_good_address_passes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all the forms that the client of Redis takes."""
    monkeypatch.setenv("ROCKCHIPLLAMA_REDIS_URL", url)
    assert configuration.load(TaskSettings).redis_url == url


def test_a_setting_behind_a_table_is_told_to_go_above_it(tmp_path: Path) -> None:
    """Whether what it says fits the table, and is taken for a part of that, or does not."""
    file = tmp_path / "some.toml"
    file.write_text("[aliases]\nlog_level = 'debug'\nfast = 'qwen3'\n")
    done = run("--config", str(file))
    assert done.returncode == 0
    assert done.stderr.count("put it above the line [aliases]") == 1 and "'log_level'" in done.stderr
    file.write_text("[aliases]\nqueue_limit = 16\n")
    done = run("--config", str(file))
    assert done.returncode == 2
    assert "'queue_limit' is a setting itself: put it above the line [aliases]" in done.stderr


@pytest.mark.parametrize("content", [b"port = \n", b"\xff\xfe", b"port = 1\nport = 2\n"])
def test_a_broken_file_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    """The one in the current folder is found by itself."""
    (tmp_path / "rockchipllama.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"The configuration file .*rockchipllama.toml is not "):
        configuration.load(TaskSettings)


def test_what_is_no_setting_is_named_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file and in the environment; a warning, not an error, so that an older version reads a newer file."""
    (tmp_path / "rockchipllama.toml").write_text("prot = 1\nqueue_limit = 2\n")
    monkeypatch.setenv("ROCKCHIPLLAMA_MODEL_DIR", "x")
    monkeypatch.setenv("ROCKCHIPLLAMA_LIFELINE_FD", "9")
    in_file, in_environment = configuration.unknown()
    assert "sets 'prot'" in in_file
    assert "Did you mean 'port'?" in in_file
    assert "ROCKCHIPLLAMA_MODEL_DIR" in in_environment
    assert "Did you mean 'ROCKCHIPLLAMA_MODELS_DIR'?" in in_environment


def test_another_spelling_of_a_variable_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are read without regard to case; the command line still wins."""
    monkeypatch.setattr(environment, "from_command_line", set())
    with patch.dict(os.environ, {"rockchipllama_queue_limit": "5"}):  # what is given stays in the environment else
        environment.give({"queue_limit": 6, "lease": None})
        assert configuration.load(TaskSettings).queue_limit == 6
        assert environment.from_command_line == {"queue_limit"}
    assert TaskSettings().queue_limit == TaskSettings.model_fields["queue_limit"].default


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:s3cret@host/0", "redis://:********@host/0"),
        ("unix:///run/redis.sock?db=1&password=s3cret&x=1", "unix:///run/redis.sock?db=1&password=********&x=1"),
        ("rediss://me:s3cret@host?password=another", "rediss://me:********@host?password=********"),
        ("https://s3cret@host/v1", "https://********@host/v1"),
        ("az://files?sv=1&sig=s3cret&api_key=s3cret#x", "az://files?sv=1&sig=********&api_key=********#x"),
    ],
)
def test_a_password_in_an_address_is_never_shown(url: str, shown: str) -> None:
    """Wherever it stands."""
    assert without_password(url) == shown


def test_a_refused_password_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in the traceback of a program that tells the mistake in no sentence: both go to logs."""
    monkeypatch.setenv("ROCKCHIPLLAMA_REDIS_URL", "redis//me:s3cret@host:6379/0")
    with pytest.raises(ConfigurationError, match=r"is '\*{8}@host:6379/0'") as refused:
        configuration.load(TaskSettings)
    assert "s3cret" not in str(refused.value) + str(refused.value.__cause__)


@pytest.mark.parametrize(
    "name", [each.name for each in configuration.declared() if "://" in str(each.field.description)]
)
def test_no_setting_shows_a_password(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither among the settings nor where it is refused; a setting that can do nothing with one refuses it."""
    monkeypatch.setattr("tasks.tracing.installed", lambda: True)
    url = "s3://me:s3cret@host/0" if name == "files_url" else "redis://me:s3cret@host/0" if name == "redis_url" else ""
    monkeypatch.setenv(environment.variable(name), url or "http://me:s3cret@host/0")
    try:
        shown = str({item.setting.name: item.value for item in configuration.settle()}[name])
    except ConfigurationError as error:
        shown = str(error)
        assert name in ("hf_endpoint", "files_url") and "no password" in shown
    assert "me:********@host" in shown and "s3cret" not in shown
