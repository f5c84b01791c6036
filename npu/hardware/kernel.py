"""Reads the small files in which the kernel tells of itself. Most are missing on most machines, and some refuse."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/")
_CONTAINERS = (".dockerenv", "run/.containerenv", "run/systemd/container")
"""What container runtimes leave in the file system they give."""


def read(path: Path) -> str:
    """The file's text without blanks and zero bytes at its ends; empty when it cannot be read."""
    return attempt(path)[0]


def attempt(path: Path) -> tuple[str, str]:
    """The file's text, and why there is none: one of the two is empty, or both when the file is."""
    try:
        return _bytes(path).decode(errors="replace").strip("\0 \t\n"), ""
    except FileNotFoundError:
        return "", "is not there"
    except PermissionError:
        return "", "may be read by root only"
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"


def _bytes(path: Path) -> bytes:
    # Dozens of these are read every two seconds, all day long: an open file of Python's asks the kernel thrice as often.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(file, 16_384), b""))
    finally:
        os.close(file)


def number(path: Path) -> int | None:
    """The whole number in the file; None when there is none."""
    text = read(path)
    return int(text) if text.removeprefix("-").isdecimal() else None


def exists(path: Path) -> bool:
    """Whether there is something; no, when the way there is closed to this user."""
    try:
        return path.exists()
    except OSError:
        return False


def in_container(root: Path = ROOT) -> bool:
    """Whether this process sees a container's file system."""
    return any(exists(root / place) for place in _CONTAINERS)
