"""The settings of commands that are clients of a running service."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr

from tasks.settings import Settings


class ClientSettings(Settings):
    """Which service, and who asks."""

    title: ClassVar[str] = "Commands that ask a running service"

    service_url: str | None = Field(
        None,
        description="Where the service is that `rockchipllama run`, `chat`, `jobs` and `batch` ask. Unset: on this machine, "
        "at the port it has.",
    )
    service_key: SecretStr | None = Field(None, description="The API key that they show to it, where keys are made.")
    chat_history: Path = Field(
        Path("~/.rockchipllama_history"), description="The file in which `rockchipllama chat` keeps what was typed."
    )
