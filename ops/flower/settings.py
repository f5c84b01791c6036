"""The settings of `rockchipllama flower` alone."""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import Field, SecretStr, field_validator

from tasks.settings import Settings


class FlowerSettings(Settings):
    """Where Flower is to be found, and by whom."""

    title: ClassVar[str] = "Flower"

    flower_host: str = Field("127.0.0.1", description="The address that `rockchipllama flower` listens on.")
    flower_port: int = Field(5555, ge=0, le=65535, description="The port likewise; 0 is any that is free.")
    flower_login: SecretStr | None = Field(
        default_factory=lambda: (
            SecretStr(login)
            if (login := os.environ.get("FLOWER_BASIC_AUTH"))  # noqa: TID251 - this is a settings module
            else None
        ),
        description="`NAME:PASSWORD` that it asks for. Unset: what `FLOWER_BASIC_AUTH` says. Without either it listens on this "
        "machine only, under its own names.",
    )

    @field_validator("flower_login")
    @classmethod
    def _is_login(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(value.get_secret_value().partition(":")):
            raise ValueError("it must be a name and a password with a colon between")
        return value
