"""Files that clients send for a model to be made of: where they lie until it is, by the SHA-256 of their bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

FOLDER: Final = ".partial/.blobs"
"""In the models folder, so that a model is made of them without a copy. No catalogue looks there, and no model is called so."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 hexadecimal digits; `sha256-` is how Ollama's clients write it in paths."""
    return _DIGEST.fullmatch(text) is not None


def blob_path(models_dir: Path, digest: str) -> Path:
    """Where the file of that digest lies, when it was sent. Raises `ValueError` for what is no digest."""
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise ValueError(f"'{digest[:100]}' is not `sha256:` and 64 hexadecimal digits.")
    return models_dir / FOLDER / found[1]
