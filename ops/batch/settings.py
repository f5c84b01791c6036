"""The settings of commands that are clients of a running service."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, SecretStr

from tasks.settings import Settings


class ClientSettings(Settings):
    """Which service, and who asks."""

    title: ClassVar[str] = "Commands that ask a running service"

    service_url: str | None = Field(
        None,
        description="Where the service is that `rockchipllama batch` asks. Unset: on this machine, at the port it has.",
    )
    service_key: SecretStr | None = Field(
        None, description="The API key that `rockchipllama batch` shows to it, where keys are made."
    )
