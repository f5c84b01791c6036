"""Reads the small files in which the kernel tells of itself. Most are missing on most machines, and some refuse."""

from __future__ import annotations

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
        return path.read_text(errors="replace").strip("\0 \t\n"), ""
    except FileNotFoundError:
        return "", "is not there"
    except PermissionError:
        return "", "may be read by root only"
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"


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
