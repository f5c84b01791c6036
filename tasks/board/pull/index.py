"""The models known by short names: `external/models.toml`, read strictly."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from npu.hardware import SOCS
from tasks.settings import ROOT

PATH: Final = ROOT / "external" / "models.toml"
UNVERIFIED: Final = "unverified"
"""Instead of a digest that nobody has told us yet."""

_Repository = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)]
_Revision = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)]
_Digest = Annotated[str, msgspec.Meta(pattern=rf"^([0-9a-f]{{64}}|{UNVERIFIED})$")]
_Version = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+\.\d+$")]
_Size = Annotated[int, msgspec.Meta(gt=0)]


class IndexFault(ValueError):
    """Raised when the index cannot be read; the message names the file and what is wrong in it."""


class TokenizerSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the tokenizer and the chat template of converted weights lie."""

    repository: _Repository
    revision: _Revision


class IndexFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of weights."""

    engine: Literal["rkllm", "llamacpp"]
    repository: _Repository
    revision: _Revision
    file: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$", max_length=300)]
    sha256: _Digest
    dtype: str
    size: _Size | None = None
    """Bytes; None until the repository tells."""
    soc: str | None = None
    """The chip it was converted for; None where any machine runs it."""
    toolkit: _Version | None = None
    """The version of the converter."""
    context: _Size | None = None
    memory_mb: _Size | None = None
    """What the vendor measured it to take once loaded."""
    tokenizer: TokenizerSource | None = None

    @property
    def digest(self) -> str | None:
        """None where nobody has told it."""
        return None if self.sha256 == UNVERIFIED else self.sha256


class IndexModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model, and the files there are of it, the ones to prefer first."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*:[a-z0-9][a-z0-9.-]*$", max_length=100)]
    licence: str
    file: Annotated[tuple[IndexFile, ...], msgspec.Meta(min_length=1)]
    trained_context: _Size | None = None
    """Tokens."""
    cache_bytes_per_token: _Size | None = None
    """What each token of the context takes, in 16-bit floats."""


class _Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[IndexModel, ...]


def read_index(path: Path = PATH) -> dict[str, IndexModel]:
    """The models by name, in the order of the file. Raises `IndexFault`."""
    try:
        models = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Index).model
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise IndexFault(f"The index of models {path} cannot be read: {error}.") from error
    found: dict[str, IndexModel] = {}
    for model in models:
        if found.setdefault(model.name, model) is not model:
            raise IndexFault(f"The index of models {path} has '{model.name}' twice.")
        for file in model.file:
            if (file.engine == "rkllm") != (file.soc is not None) or (file.soc is not None and file.soc not in SOCS):
                raise IndexFault(
                    f"The index of models {path}: '{file.file}' of '{model.name}' must name its chip when it is for the "
                    f"NPU, and none otherwise. The chips known here are {', '.join(SOCS)}."
                )
    return found
