"""The models folder as `up` and `join` find it."""

from __future__ import annotations

import os
from pathlib import Path

from ops.up.errors import UpError


def check_models_dir(folder: Path) -> None:
    """Raises `UpError` where no models can lie there. One that is not there is a mistyped one, most likely; it would look like
    a service without models."""
    why = (
        "is not there"
        if not folder.exists()
        else "is a file"
        if not folder.is_dir()
        else "may not be read by this user"
        if not os.access(folder, os.R_OK | os.X_OK)
        else None
    )
    if why is not None:
        raise UpError(f"The models folder {folder} {why}; name another with --models-dir, or make that one.")
