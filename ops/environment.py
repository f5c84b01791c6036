"""The process environment: what it says of our settings, what the command line adds, what a child gets of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from tasks import lifeline
from tasks.settings import PREFIX, ROOT

CONFIG = f"{PREFIX}CONFIG"
LISTEN_FD = f"{PREFIX}LISTEN_FD"
COMPOSE = frozenset({f"{PREFIX}MODELS", f"{PREFIX}PUBLISH"})
"""What docker-compose.yml reads; a `.env` that sets it is given to the containers as well."""
INTERNAL = frozenset({CONFIG, LISTEN_FD, lifeline.VARIABLE}) | COMPOSE
"""Variables with our prefix that are no settings: besides those, where the file is, and descriptors that `up` hands down."""

API_SECRETS = frozenset(
    {
        f"{PREFIX}API_KEYS",
        f"{PREFIX}WEBHOOK_SECRET",
        f"{PREFIX}SERVICE_KEY",
        f"{PREFIX}FLOWER_LOGIN",
        "FLOWER_BASIC_AUTH",
    }
)
"""Variables that hold secrets of the API and its clients. No other part needs them, and a worker runs what others wrote."""

BOARD_SECRETS = frozenset({f"{PREFIX}HF_TOKEN", "HF_TOKEN"})
"""Likewise of the board, which pulls models. Its workers need none of them."""

from_command_line: set[str] = set()
"""Names of the settings that the command line gave; they stand in this process's environment since then."""


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + setting.upper()


def ours() -> dict[str, str]:
    """Every variable with our prefix, whatever case it was written in, as upper case to value."""
    return {key.upper(): value for key, value in os.environ.items() if key.upper().startswith(PREFIX)}


def put(name: str, value: str) -> None:
    """Set one variable for this process and those it starts."""
    for key in [key for key in os.environ if key.upper() == name]:
        del os.environ[key]  # settings are read without regard to case, so another spelling would compete
    os.environ[name] = value


def forget(names: Collection[str]) -> None:
    """Take variables away from this process and those it starts from now on."""
    for key in [key for key in os.environ if key.upper() in names]:
        del os.environ[key]


def give(given: Mapping[str, str | int | Path | None]) -> None:
    """Let values from the command line win: into the environment, which is stronger than the file. None: not given."""
    for setting, value in given.items():
        if value is None:
            continue
        put(variable(setting), str(value))
        from_command_line.add(setting)


def listen_fd() -> int | None:
    """The listening socket inherited from `up`, if there is one."""
    named = os.environ.get(LISTEN_FD, "")
    return int(named) if named.isdigit() else None


def for_child(extra: Mapping[str, str], without: Collection[str] = ()) -> dict[str, str]:
    """The environment of a process to start: ours and `extra`, but not what `without` names."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    python = {
        # `python -m` looks into the current folder first, and the user may stand in one that has a tasks/ of its own.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(path for path in dict.fromkeys(paths) if path),
        # Their output is a pipe to us, and Python would hold lines back in a buffer.
        "PYTHONUNBUFFERED": "1",
    }
    kept = {key: value for key, value in os.environ.items() if key.upper() not in without}
    return {**kept, **python, **extra}


def runtime_dir() -> Path | None:
    """The user's own folder for sockets, where the system provides one."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    return Path(named) if named else None
