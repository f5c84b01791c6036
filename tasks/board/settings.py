"""Settings of a board agent."""

from __future__ import annotations

import os
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from tasks.settings import Settings


def _hugging_face(name: str) -> str | None:
    """What the variables say that Hugging Face's own programs read."""
    return os.environ.get(f"HF_{name}") or None  # noqa: TID251 - this is a settings module


RaiseGovernors = Literal["on-demand", "always", "never"]


class BoardSettings(Settings):
    """What one board's agent does by itself."""

    title: ClassVar[str] = "Board"

    preload: bool = Field(True, description="Load the default model when the board starts, not with the first request.")
    single_model: bool = Field(
        False,
        description="Have one model loaded at a time: another one takes its place, however much memory there is. For small "
        "boards.",
    )
    least_stay: float = Field(
        10.0, ge=0, description="Seconds a model stays at least before it may be unloaded to make room for another one."
    )
    room_turn: float = Field(
        60.0,
        ge=0,
        description="Seconds jobs wait for room while another model always has something to do; then it gives way after its job "
        "in hand. So long each of the two then stays in turn.",
    )
    room_wait: float = Field(
        600.0,
        gt=0,
        description="Seconds jobs wait for room while other models have something to do; then they are refused.",
    )
    restart_limit: float = Field(
        60.0, gt=0, description="Longest pause in seconds before a worker that keeps dying is started again."
    )
    npu_wait: float = Field(
        60.0,
        ge=0,
        description="Seconds after the machine's boot for which the board waits for the device file of its NPU, whose driver "
        "may come up late; then it serves what runs without.",
    )
    governors: RaiseGovernors = Field(
        "on-demand",
        description="When the governors of CPU, NPU and memory are raised to `performance`: while a job runs (`on-demand`), as "
        "long as the board's agent runs (`always`), or `never`. It takes root, and a chip that has an NPU.",
    )
    neighbours: bool = Field(
        True, description="Copy models from other boards of the service that have them, and give them ours."
    )
    lend_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="The port on which other boards get our models while they copy some. 0: any that is free.",
    )
    hf_token: SecretStr | None = Field(
        default_factory=lambda: SecretStr(token) if (token := _hugging_face("TOKEN")) else None,
        description="A token of Hugging Face, to pull models that are gated or private. Unset: what `HF_TOKEN` says.",
    )
    hf_endpoint: str = Field(
        default_factory=lambda: _hugging_face("ENDPOINT") or "https://huggingface.co",
        description="Hugging Face, or a mirror of it. Unset: what `HF_ENDPOINT` says, else `https://huggingface.co`.",
    )

    @field_validator("hf_endpoint")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not value.startswith(("https://", "http://")):
            raise ValueError("it must begin with https:// or http://")
        if "@" in urlsplit(value).netloc:
            raise ValueError("it can have no password; `hf_token` is for that")
        return value.rstrip("/")
