"""The answers of a batch, brought to a file; a download that broke off goes on where it ended."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from ops.service import OVER, PAUSE, TRIES, Service, ServiceAway, ServiceError


def errors_beside(out: Path) -> Path:
    """Where the lines go that were not answered: answers.errors.jsonl beside answers.jsonl."""
    return out.with_name(f"{out.stem}.errors{out.suffix or '.jsonl'}")


def check_free(out: Path) -> None:
    """Refuse to write over what is there. Raises `ServiceError`."""
    for path in (out, errors_beside(out)):
        if path.exists():
            raise ServiceError(f"{path} is there already; name another file, or take it away first.")
    if not out.absolute().parent.is_dir():
        raise ServiceError(f"There is no folder {out.absolute().parent}.")


def collect(service: Service, batch: dict[str, Any], out: Path) -> list[Path]:
    """Bring what there is of a batch that is over to `out`, and what was not answered to a file beside it; which of them
    were written. Raises `ServiceError`."""
    check_over(batch)
    check_free(out)
    brought = [
        (_bring(service, batch[name], path), path)
        for name, path in (("output_file_id", out), ("error_file_id", errors_beside(out)))
        if batch[name] is not None
    ]
    # Not before both are here: what is asked for again goes on where it ended.
    for part, path in brought:
        os.replace(part, path)
    return [path for _, path in brought]


def check_over(batch: dict[str, Any]) -> None:
    """Raises `ServiceError` when there is nothing to be had yet."""
    if batch["status"] not in OVER:
        raise ServiceError(f"{batch['id']} is not over yet, it is {batch['status']}; `batch watch` waits for its end.")


def show(service: Service, batch: dict[str, Any]) -> None:
    """Write the answers to the standard output. Raises `ServiceError`."""
    check_over(batch)
    if batch["output_file_id"] is not None:
        with service.content(batch["output_file_id"]) as chunks:
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _bring(service: Service, file: str, path: Path) -> Path:
    # Under the file's own id, so that what is gone on with is a part of the same.
    part = path.with_name(f"{path.name}.{file}.part")
    for left in reversed(range(TRIES)):
        have = part.stat().st_size if part.exists() else 0
        try:
            size = service.size(file)
            if have < size:
                with service.content(file, have) as chunks, part.open("ab") as to:
                    for chunk in chunks:
                        to.write(chunk)
            break
        except ServiceAway:
            if not left:
                raise
            time.sleep(PAUSE)
    if part.stat().st_size != size:
        raise ServiceError(f"{part} has not the size of what the service has; take it away and ask again.")
    return part
