"""Why `up` does not start, or stops by itself.

UpError
├── AlreadyRunning    another `up` serves from the same data directory
├── PortInUse         something else listens where the API should
└── PartFailed        a part of the service cannot be kept alive, or does not get ready
"""

from __future__ import annotations


class UpError(Exception):
    """The root; its message is what the user reads, and `usage` tells whether it was asked wrongly."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        self.usage = usage
        super().__init__(message)


class AlreadyRunning(UpError):
    """Raised when another `up` holds the data directory."""


class PortInUse(UpError):
    """Raised when the API's address cannot be listened on."""


class PartFailed(UpError):
    """Raised when a part died too often, would not start, or refused its settings (then `usage` is true)."""
