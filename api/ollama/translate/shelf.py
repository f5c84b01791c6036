"""How far a pull is in Ollama's words, and what a new model is to be in ours."""

from __future__ import annotations

from typing import Any

from api.ollama.shelf_schemas import CreateBody
from tasks.commands import Create, PullProgress, PullStep
from tasks.roster import ModelStatus

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
    *("presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta"),
)
"""The options that a manifest may settle."""


def progress_line(progress: PullProgress) -> dict[str, Any]:
    """One line of `/api/pull`."""
    match progress.step:
        case PullStep.CHOOSING:
            return {"status": progress.message or "pulling manifest"}
        case PullStep.FETCHING:
            short = progress.digest.removeprefix("sha256:")[:12]
            line: dict[str, Any] = {"status": f"pulling {short or progress.file}", "completed": progress.completed}
            # By the digest clients tell one bar from another.
            line["digest"] = progress.digest or f"file:{progress.file}"
            line["file"] = progress.file
            return line if progress.total is None else line | {"total": progress.total}
        case PullStep.VERIFYING:
            return {"status": "verifying sha256 digest"}
        case PullStep.PLACING:
            return {"status": "writing manifest"}
        case PullStep.DONE:
            return {"status": "success"}
        case PullStep.FAILED:
            return {"error": progress.message}


def create(body: CreateBody, base: ModelStatus | None) -> Create:
    """What the body asks for, in the shared vocabulary; without a base, of files."""
    wishes = {name: value for name in SAMPLING if (value := getattr(body.parameters, name)) is not None}
    return Create(
        model=body.called,
        base=base.card.id if base is not None else "",
        system=body.system,
        template=body.template,
        sampling=wishes | ({"top_k": max(0, wishes["top_k"])} if "top_k" in wishes else {}),
        stop=body.parameters.stop or None,
        context_length=body.parameters.num_ctx,
        adapter=base.adapter if base is not None else None,
        files=body.files,
        adapters=body.adapters,
    )
