"""The settings of `rockchipllama up` alone."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from pydantic import Field, field_validator

from tasks.settings import Settings


class UpSettings(Settings):
    """The embedded store, and how long things may take."""

    title: ClassVar[str] = "Running everything with `up`"

    store_memory: int | None = Field(
        None,
        ge=32,
        description="Megabytes the embedded Valkey may fill with jobs. Unset: a sixteenth of the machine's memory, "
        "between 64 and 1024.",
    )
    disk_reserve: int = Field(
        64,
        ge=0,
        description="Megabytes of the disk that are left to jobs already accepted: with less free, new ones are refused.",
    )
    share: bool = Field(
        False,
        description="Let boards with a token join over the network: the embedded Valkey then listens on `share_host` as well. "
        "Nothing on the way is encrypted.",
    )
    share_host: str = Field("0.0.0.0", description="The address it listens on for them.")
    share_port: int = Field(6380, ge=1, le=65535, description="The port likewise.")
    announce: bool | None = Field(
        None,
        description="Tell the local network by mDNS where a shared service is, so that boards find it with a token alone. "
        "Unset: yes, unless the package `zeroconf` is missing, as in containers of one part.",
    )
    stop_timeout: float = Field(
        30.0, gt=0, description="Seconds that the API, and then the board, may take to stop before they are killed."
    )

    @field_validator("announce")
    @classmethod
    def _can_be_announced(cls, value: bool | None) -> bool | None:
        if value and find_spec("zeroconf") is None:
            raise ValueError("its package is not installed: `.venv/bin/pip install zeroconf` does that")
        return value
