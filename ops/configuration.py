"""Every setting of the service: its value, where that came from, and what is wrong with it in one sentence."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from ops import environment
from ops.program import program
from tasks.settings import Settings, TaskSettings, config_file, fault_of, live_names

CLASSES = (
    "tasks.settings:TaskSettings",
    "api.settings:ApiSettings",
    "tasks.board.settings:BoardSettings",
    "tasks.worker.settings:WorkerSettings",
    "ops.up.settings:UpSettings",
    "ops.flower.settings:FlowerSettings",
    "ops.client_settings:ClientSettings",
)
"""Where settings are declared, in the order they are shown in. Named, not imported: a process loads what it uses."""

_PASSWORD = re.compile(r"(?i)(?<=[?&])([^=&#]*(?:password|token|secret|key|sig|signature)=)[^&#]*")
"""In the parameters of an address."""
_MISTYPED = re.compile(r".*:.*(?=@)")
"""What may be a password in a value that was to be an address."""
_MASK = "********"

AnySettings = TypeVar("AnySettings", bound=Settings)


class ConfigurationError(Exception):
    """Raised when a setting cannot be used; the message is one sentence for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared setting."""

    name: str
    owner: type[Settings]
    field: FieldInfo

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return environment.variable(self.name)

    @property
    def live(self) -> bool:
        """Whether it can be changed while the service runs."""
        return self.name in live_names(self.owner)

    @property
    def secret(self) -> bool:
        """Whether its value must not be shown."""
        return _is_secret(self.field)


@dataclass(frozen=True, slots=True)
class Settled:
    """One setting with the value in force (secrets masked) and where it came from."""

    setting: Setting
    value: Any
    source: str


def classes() -> list[type[Settings]]:
    """Every settings class of the service."""
    found = []
    for place in CLASSES:
        module, name = place.split(":")
        found.append(getattr(importlib.import_module(module), name))
    return found


def declared() -> Iterator[Setting]:
    """Every setting once, at the class that declares it, in the order of declaration."""
    for owner in classes():
        own = inspect.get_annotations(owner)
        for name, field in owner.model_fields.items():
            if name in own:
                yield Setting(name, owner, field)


def read_file() -> tuple[Path | None, dict[str, Any]]:
    """The TOML file and what stands in it. Raises `ConfigurationError`."""
    path = config_file()
    if path is None:
        return None, {}
    try:
        with path.open("rb") as file:
            return path, tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The configuration file {path} is not valid TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The configuration file {path} is not UTF-8 text.") from error
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} cannot be read: {error.strerror}.") from error


def load(owner: type[AnySettings]) -> AnySettings:
    """The settings of one class. Raises `ConfigurationError` for the first value that cannot be used."""
    path, content = read_file()
    try:
        return owner()
    except ValidationError as error:
        raise ConfigurationError(_sentence(owner, error.errors()[0], path, content)) from error
    except SettingsError as error:
        # The one case: a value that is written as JSON in the environment.
        name = str(error).split('"')[1] if '"' in str(error) else "a setting"
        cause = error.__cause__ or error
        raise ConfigurationError(
            f'{environment.variable(name)} must hold JSON, such as {{"short": "long-name"}}, and does not: {cause}.'
        ) from error


def _sentence(owner: type[Settings], error: ErrorDetails, path: Path | None, content: dict[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    where = _source(name, path, content)
    field = owner.model_fields.get(name)
    shown = ""
    if field is not None and not _is_secret(field) and "input" in error:
        value = error["input"]
        if isinstance(value, str) and "://" not in value:
            value = _MISTYPED.sub(_MASK, value)
        shown = f" is {_quoted(_fit(value))}"
    why = fault_of(error)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    place = ".".join(str(part) for part in error["loc"])
    misplaced = _misplaced(name, str(error["loc"][-1])) if len(error["loc"]) > 1 and where == str(path) else ""
    return f"The setting {place}{shown} (from {where}), which cannot be used: {why.rstrip('.')}.{meaning}{misplaced}"


def _misplaced(table: str, key: str) -> str:
    """What to do about a setting that slipped into a table of the file; empty when `key` is no setting."""
    if key not in {setting.name for setting in declared()}:
        return ""
    return f" '{key}' is a setting itself: put it above the line [{table}], for what follows that belongs to the table."


def check() -> None:
    """Load every class, so that a bad value is found before anything is started. Raises `ConfigurationError`."""
    for owner in classes():
        load(owner)


def check_library(settings: TaskSettings) -> None:
    """What is named as the NPU's library is there: each of its models would fail over it. Raises `ConfigurationError`."""
    from npu.engines.rkllm.library import check_named  # only where models are run
    from npu.errors import ModelRefused

    try:
        check_named(settings.rkllm_library)
    except ModelRefused as error:
        where = _source("rkllm_library", *read_file())
        raise ConfigurationError(
            f"The setting rkllm_library is {_quoted(settings.rkllm_library)} (from {where}), which cannot be used: {error}"
        ) from error


def settle() -> list[Settled]:
    """Every setting with its value and its source. Raises `ConfigurationError`."""
    path, content = read_file()
    loaded = {owner: load(owner) for owner in classes()}
    settled = []
    for setting in declared():
        value = getattr(loaded[setting.owner], setting.name)
        if setting.secret and value not in (None, "", (), []):
            value = _MASK
        settled.append(Settled(setting, _fit(value), _source(setting.name, path, content)))
    return settled


def unknown() -> list[str]:
    """One sentence for each key of the file, and each variable with our prefix, that is no setting."""
    names = {setting.name for setting in declared()}
    path, content = read_file()
    sentences = [
        f"{path} sets '{key}', which is no setting of this version.{_hint(key, names)}"
        for key in content
        if key not in names
    ]
    sentences += [
        f"{path} has '{key}' in the table [{table}], where it is no setting.{mend}"
        for table, inside in content.items()
        if table in names and isinstance(inside, dict)
        for key in inside
        if (mend := _misplaced(table, key))
    ]
    variables = {environment.variable(name) for name in names}
    sentences += [
        f"The environment sets {key}, which is no setting of this version.{_hint(key, variables)}"
        for key in environment.ours()
        if key not in variables | environment.INTERNAL
    ]
    return sentences


def without_password(url: str) -> str:
    """An address fit to be shown: a password may stand before the host or among the parameters."""
    scheme, separator, rest = _PASSWORD.sub(rf"\1{_MASK}", url).partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at:
        return f"{scheme}{separator}{rest}"
    user, colon, _ = credentials.partition(":")
    # What stands there alone may be a token.
    return f"{scheme}{separator}{user if colon else ''}{colon}{_MASK}@{place}"


def _fit(value: Any) -> Any:
    """A value to be shown: passwords of addresses are masked."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_fit, value))
    return without_password(value) if isinstance(value, str) and "://" in value else value


def _is_secret(field: FieldInfo) -> bool:
    return any(kind.__name__ in str(field.annotation) for kind in (SecretStr, SecretBytes))


def _source(name: str, path: Path | None, content: dict[str, Any]) -> str:
    if name in environment.from_command_line:
        return "the command line"
    if environment.variable(name) in environment.ours():
        return environment.variable(name)
    if name in content:
        return str(path)
    return "default"


def _hint(word: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{nearest[0]}'?" if nearest else f" `{program()} settings` lists those there are."


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"'{text if len(text) <= 80 else text[:80] + '…'}'"
