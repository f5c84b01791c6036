"""How settings are read, and those that every process of the service shares.

A setting comes, in growing strength, from its default, the TOML file, the environment (prefix `ROCKCHIPLLAMA_`) and the
command line (which hands its values to the processes it starts through their environment).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, JsonValue, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tasks import sentinel, tracing
from tasks.policy import Ageing

PREFIX = "ROCKCHIPLLAMA_"
ROOT = Path(__file__).resolve().parent.parent
"""Where this application is installed: the folder with api/, tasks/, npu/ and models/."""

LIVE: dict[str, JsonValue] = {"live": True}
"""Marks a field that may be changed while the service runs (`tasks/live_settings.py`)."""
LIVE_SECONDS: dict[str, JsonValue] = LIVE | {"unit": "s"}
LIVE_JOBS: dict[str, JsonValue] = LIVE | {"unit": "jobs"}

CommaList = Annotated[tuple[str, ...], NoDecode]
"""Several words; in the environment separated by commas."""


def _any_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def config_file() -> Path | None:
    """The TOML file: `ROCKCHIPLLAMA_CONFIG`, else `rockchipllama.toml` here or beside the application. None: there is none."""
    named = os.environ.get(f"{PREFIX}CONFIG")  # noqa: TID251 - this is a settings module
    if named:
        return Path(named)
    for folder in (Path.cwd(), ROOT):
        if (folder / "rockchipllama.toml").is_file():
            return folder / "rockchipllama.toml"
    return None


class Settings(BaseSettings):
    """What each settings class of the service inherits: where its values come from."""

    # A value that is refused may be a password, and a traceback goes to a log.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    title: ClassVar[str] = ""
    """The heading of this class's fields in docs/settings.md."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line (as arguments), then environment, then file."""
        path = config_file()
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if path is not None:
            sources += (TomlConfigSettingsSource(settings_cls, toml_file=path),)
        return sources


_WANTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "a text (in the file, in quotes)",
    "path_type": "a path (in the file, in quotes)",
    "dict_type": "a table of names",
    "literal_error": "{expected}",
    "tuple_type": "a list, or words with commas between",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}
"""What a value must be, by the validating library's word for what it is not. What is not here keeps its sentence."""


def fault_of(error: ErrorDetails) -> str:
    """What is wrong with a value, for the person who wrote it, without a point."""
    if error["type"] == "extra_forbidden":
        return "nothing of that name belongs there"
    if error["type"] not in _WANTED:
        return error["msg"].removeprefix("Value error, ").rstrip(".")
    # A bound of a fraction may be a whole number, and reads better as one.
    figures = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in error.get("ctx", {}).items()
    }
    return "it must be " + _WANTED[error["type"]].format(**figures)


def live_names(owner: type[Settings]) -> tuple[str, ...]:
    """The settings of a class that may be changed while the service runs."""
    return tuple(
        name
        for name, field in owner.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("live")
    )


def unit_of(field: FieldInfo) -> str | None:
    """What a setting's value counts; None where it counts nothing, or its description tells."""
    told = field.json_schema_extra
    return cast("str | None", told.get("unit")) if isinstance(told, dict) else None


class TaskSettings(Settings):
    """Redis, models' names, and the life of a job."""

    title: ClassVar[str] = "Service"

    redis_url: str | None = Field(
        None,
        description="The Redis or Valkey to use: `redis://`, `rediss://` (TLS), `unix://` or `redis+sentinel://`. Unset, `up` "
        "starts an embedded Valkey, and a part started alone looks at `redis://127.0.0.1:6379/0`.",
    )
    data_dir: Path = Field(
        ROOT / "data", description="What the service keeps: the embedded Valkey's files, locks, sockets."
    )
    models_dir: Path = Field(
        ROOT / "models", description="Where models lie: a folder with a manifest each, or bare files."
    )
    board_name: str = Field(
        default_factory=socket.gethostname,
        description="What this machine is called among boards. Unset: its host name.",
    )
    default_model: str | None = Field(
        None,
        description="The model that `up` loads first, and that answers requests which name none. "
        "Unset: the first found that can chat.",
    )
    context_length: int | Literal["auto"] | None = Field(
        None,
        description="Tokens of context to reserve where a model allows more; `auto` is the longest of 2048, 4096, 8192 and 16384 "
        "that fits into memory. Unset: what its manifest or file says.",
    )
    memory_reserve: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Part of a board's memory that is left to the system, and never used by models.",
    )
    memory_total: int | None = Field(
        None, gt=0, description="MiB of memory that a board is taken to have, where that is less than it has."
    )
    rkllm_library: str = Field(
        "",
        description="Rockchip's librkllmrt.so: its path, a folder with it, or `simulator` on a machine without an NPU (with a "
        "version: `simulator-1.2.3`). Unset: it is searched for.",
    )
    rkllm_version: str = Field(
        "", description="The version of that library, where it cannot be found out; a wrong one is refused."
    )
    aliases: dict[str, str] = Field(
        default_factory=dict, description="Further names for models: `[aliases]` in the file, JSON in the environment."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="The collector that traces of requests and jobs are sent to, by OTLP over HTTP, such as "
        "`http://127.0.0.1:4318`. Unset: none are made.",
    )
    queue_limit: int = Field(
        64,
        ge=1,
        description="Jobs that may wait for one model; one more is refused with 429.",
        json_schema_extra=LIVE_JOBS,
    )
    deadline: float = Field(
        3600.0,
        gt=0,
        le=1e8,
        description="Seconds after which an unfinished job is given up, waiting or running.",
        json_schema_extra=LIVE_SECONDS,
    )
    record_limit: int = Field(
        32_000_000,
        ge=10_000,
        description="Bytes that the record of one job may grow to, about 400,000 tokens; a longer answer is refused or ended.",
    )
    job_ttl: float = Field(
        3600.0,
        ge=0.01,
        le=1e8,
        description="Seconds a job's record and events are kept after its end.",
        json_schema_extra=LIVE_SECONDS,
    )
    keep_alive: float = Field(
        -1.0,
        le=1e9,
        description="Seconds a loaded model stays that nobody asks for; below 0 it stays for ever. A request may say "
        "otherwise (`keep_alive` of Ollama's API).",
        json_schema_extra=LIVE_SECONDS,
    )
    background_wait: float = Field(
        Ageing().background,
        gt=0,
        description="Seconds after which a background job goes before interactive ones, if none of its kind has ended for as "
        "long; it is then not paused.",
        json_schema_extra=LIVE_SECONDS,
    )
    batch_wait: float = Field(
        Ageing().batch,
        gt=0,
        description="The same for jobs of a batch, which then go before those in the background, too.",
        json_schema_extra=LIVE_SECONDS,
    )
    durability: Literal["disk", "ram"] = Field(
        "disk",
        description="Where jobs and API keys are kept. `disk` survives a restart, and a request that nobody waits for is "
        "accepted once it is on the disk, two to seven seconds later. `ram` waits for nothing; the embedded Valkey then writes "
        "nothing, and forgets all of it with each restart.",
    )
    lease: float = Field(
        10.0,
        gt=0,
        description="Seconds a worker's claim on a job lasts unless renewed; it renews at least three times as often.",
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_any_case)] = Field(
        "info", description="Least severe lines to log.", json_schema_extra=LIVE
    )
    log_format: Literal["text", "json"] = Field("text", description="`text` for people, `json` for collectors.")

    @field_validator("context_length", mode="before")
    @classmethod
    def _usable_context(cls, value: Any) -> Any:
        if value in (None, "auto") or (str(value).isdecimal() and int(value) >= 128):
            return value
        raise ValueError("it must be a whole number of at least 128, or auto")

    @field_validator("models_dir")
    @classmethod
    def _usable_folder(cls, value: Path) -> Path:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ValueError("it must be UTF-8, for llama.cpp knows no other names of files") from None
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _usable_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        if value is not None and not tracing.installed():
            raise ValueError(
                "what sends traces is not installed: `.venv/bin/pip install -r requirements-otel.lock` does that"
            )
        return value

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("redis://", "rediss://", "unix://", f"{sentinel.SCHEME}://")):
            raise ValueError("it must begin with redis://, rediss://, unix:// or redis+sentinel://")
        if sentinel.named_by(value) is not None:
            return value
        # The messages repeat nothing of it, for a password may stand anywhere in what is malformed.
        parts = urlsplit(value)
        if parts.scheme == "unix":
            if not parts.path:
                raise ValueError("it must name a socket, as in unix:///run/valkey.sock")
            return value
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("its port must be a number up to 65535, as in redis://192.168.1.5:6379/0") from None
        if not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
            # The client of Redis would take database 0 instead.
            raise ValueError(
                "behind its last slash it must have the number of a database, as in redis://192.168.1.5:6379/0"
            )
        return value


def redis_url(settings: TaskSettings) -> str:
    """The Redis to talk to when a part of the service is started alone."""
    return settings.redis_url or "redis://127.0.0.1:6379/0"


def split_commas(value: Any) -> Any:
    """Words separated by commas as a tuple; anything else as it is."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value
