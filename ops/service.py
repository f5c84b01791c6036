"""The service as a client sees it: files, batches, jobs and answers over HTTP."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from ops.configuration import without_password
from tasks.jobs import is_job_id

OVER = frozenset({"completed", "failed", "expired", "cancelled"})
"""The states in which nothing more happens to a batch."""
TRIES = 5
"""Times that something is asked for by itself, while the service is away."""
PAUSE = 1.0
"""Seconds between them."""
PATIENCE = httpx.Timeout(60.0, read=300.0)
LOADING = httpx.Timeout(60.0, read=660.0)
"""A load is waited for as long as the service itself does, and a little longer."""


CHANGING = httpx.Timeout(60.0, read=960.0)
"""The same of a runtime that is tried."""


PULLING = httpx.Timeout(60.0, read=900.0)
"""The same of a model that is fetched, whose source may have the board wait for ten minutes."""


NO_SOURCE = "pull model manifest: file does not exist: "
"""How Ollama's API begins its refusal of a name that means nothing; what follows is a sentence by itself."""


class ServiceError(Exception):
    """Raised when the service refuses something; the message is for the user. `usage` tells whether it was asked wrongly."""

    usage = False


class ServiceAway(ServiceError):
    """Raised when it does not answer, or cannot now: the same may work a moment later."""


class Service:
    """A running service. Its methods raise `ServiceError` and `ServiceAway`."""

    def __init__(self, url: str, key: str | None = None, patience: float | None = None) -> None:
        """`patience` is how many seconds it may take to answer; None leaves it as long as such services need."""
        where = url.rstrip("/").removesuffix("/v1")
        self._shown = without_password(where)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=where, headers=headers, timeout=patience or PATIENCE)

    def upload(self, name: str, data: BinaryIO) -> str:
        """Keep the rest of `data` there as the input of a batch; the id of the file."""
        return str(self._ask("POST", "/v1/files", data={"purpose": "batch"}, files={"file": (name, data)})["id"])

    def create(self, file: str, endpoint: str, window: str) -> dict[str, Any]:
        """Start a batch over an uploaded file; one, however often it has to be asked for."""
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": window}
        headers = {"idempotency-key": secrets.token_hex(16)}
        for _ in range(TRIES - 1):
            try:
                return self._ask("POST", "/v1/batches", json=body, headers=headers)
            except ServiceAway:
                time.sleep(PAUSE)
        return self._ask("POST", "/v1/batches", json=body, headers=headers)

    def batch(self, batch: str) -> dict[str, Any]:
        """How far it is."""
        return self._ask("GET", f"/v1/batches/{_part(batch)}")

    def cancel(self, batch: str) -> dict[str, Any]:
        """Run no more of it."""
        return self._ask("POST", f"/v1/batches/{_part(batch)}/cancel")

    def batches(self) -> Iterator[dict[str, Any]]:
        """All of them, the newest first."""
        query = {"limit": "100"}
        while True:
            page = self._ask("GET", "/v1/batches", params=query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    def settings(self) -> list[dict[str, Any]]:
        """What can be changed of its settings while it runs."""
        return list(self._ask("GET", "/v1/settings")["data"])

    def change_settings(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Change these, None meaning what it was started with; all of them then."""
        return list(self._ask("PATCH", "/v1/settings", json=values)["data"])

    def boards(self) -> dict[str, float]:
        """The boards that are at work now, each with the tokens it has lately said per second."""
        found: dict[str, float] = {}
        for queue in self.queues():
            for board in queue["boards"]:
                if board["state"] == "busy":
                    found[board["name"]] = found.get(board["name"], 0.0) + (board.get("decode_tps") or 0.0)
        return found

    def living_boards(self) -> list[dict[str, Any]]:
        """All boards that are there, with what they are and have."""
        return list(self._ask("GET", "/v1/boards")["data"])

    def drain_board(self, board: str) -> dict[str, Any]:
        """Have it hand over what it is at, and serve nothing; how it is to stand."""
        return self._ask("POST", f"/v1/boards/{_part(board)}/drain")

    def resume_board(self, board: str) -> dict[str, Any]:
        """Let it serve again; the same."""
        return self._ask("POST", f"/v1/boards/{_part(board)}/resume")

    def forget_board(self, board: str) -> None:
        """Know nothing more of one that has gone."""
        self._ask("DELETE", f"/v1/boards/{_part(board)}")

    def queues(self) -> list[dict[str, Any]]:
        """The queue of each model."""
        return list(self._ask("GET", "/v1/queue")["data"])

    def model(self, name: str) -> dict[str, Any]:
        """What it knows of a model."""
        return self._ask("GET", f"/v1/models/{_part(name)}")

    def models(self) -> list[dict[str, Any]]:
        """All that it knows."""
        return list(self._ask("GET", "/v1/models")["data"])

    def tokens(self, model: str, text: str, *, special: bool) -> list[dict[str, Any]]:
        """The tokens of a text, each with its `id` and its `piece`, which is a string or the bytes of a part of a character;
        with what the model's vocabulary wants around it, where it is to be `special`."""
        asked = {"model": model, "content": text, "add_special": special, "parse_special": False, "with_pieces": True}
        return list(self._ask("POST", "/tokenize", json=asked)["tokens"])

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to the body of a completion."""
        return self._ask("POST", "/v1/completions", json=asked)

    def count(self, chat: dict[str, Any]) -> int:
        """The tokens of the prompt that the body of a chat completion makes."""
        return int(self._ask("POST", "/tokenize", json=chat)["count"])

    def load(self, model: str, board: str | None, keep_alive: float | str | None) -> dict[str, Any]:
        """Bring a model into the memory of a board, any one where none is named, and return once it is there. `keep_alive` is as
        the API takes it. Needs an administrator."""
        asked = {"model": model, "board": board, "keep_alive": keep_alive}
        return self._ask("POST", "/v1/models/load", json={**_said(asked), "wait": True}, timeout=LOADING)

    def unload(self, model: str, board: str | None) -> dict[str, Any]:
        """Take it out of the memory of a board, of all where none is named. Needs an administrator."""
        return self._ask("POST", "/v1/models/unload", json=_said({"model": model, "board": board}))

    def use_runtime(self, board: str, version: str, model: str | None) -> dict[str, Any]:
        """Have a board use another release of the NPU's runtime, and return once that was tried. Needs an administrator."""
        asked = _said({"version": version, "model": model})
        return self._ask("POST", f"/v1/boards/{_part(board)}/runtime", json=asked, timeout=CHANGING)

    def loaded(self) -> list[dict[str, Any]]:
        """The models that boards have loaded."""
        return list(self._ask("GET", "/v1/models/loaded")["data"])

    def available(self) -> list[dict[str, Any]]:
        """Those that they could load."""
        return list(self._ask("GET", "/v1/models/available")["data"])

    def pull(self, model: str, board: str | None) -> Iterator[dict[str, Any]]:
        """Have a board fetch a model, the first one where none is named; how far it is, as Ollama's API says it. Needs an
        administrator."""
        asked = _said({"model": model, "board": board})
        with self.stream("POST", "/api/pull", json=asked, timeout=PULLING) as reply:
            for line in reply.iter_lines():
                told: dict[str, Any] = json.loads(line)
                if "error" in told:
                    raise ServiceError(str(told["error"]).removeprefix(NO_SOURCE))
                yield told

    def delete_model(self, model: str) -> None:
        """Remove it and its files from every board that has it. Needs an administrator."""
        with self.stream("DELETE", "/api/delete", json={"model": model}):
            pass  # the answer has nothing in it

    def keys(self) -> list[dict[str, Any]]:
        """The API keys that were made. Needs an administrator, as the next three do."""
        return list(self._ask("GET", "/v1/keys")["data"])

    def create_key(self, name: str, scopes: Sequence[str], limits: dict[str, int]) -> dict[str, Any]:
        """Make one; what it is, with the `key` itself."""
        return self._ask("POST", "/v1/keys", json={"name": name, "scopes": list(scopes), "limits": limits})

    def limit_key(self, name: str, limits: dict[str, int]) -> dict[str, Any]:
        """Let it ask for so much from now on; what it is."""
        return self._ask("PATCH", f"/v1/keys/{_part(name)}", json=limits)

    def revoke_key(self, name: str) -> dict[str, Any]:
        """Make it useless; what it was."""
        return self._ask("DELETE", f"/v1/keys/{_part(name)}")

    def size(self, file: str) -> int:
        """The bytes of a file."""
        return int(self._ask("GET", f"/v1/files/{_part(file)}")["bytes"])

    @contextmanager
    def content(self, file: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        """Its bytes from `start` on."""
        headers = {"range": f"bytes={start}-"} if start else {}
        with self.stream("GET", f"/v1/files/{_part(file)}/content", headers=headers) as reply:
            if start and reply.status_code != 206:
                raise ServiceError("The service cannot go on in the middle of a file; it is of an older version.")
            yield reply.iter_bytes()

    @contextmanager
    def stream(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """An answer that is read as it comes."""
        try:
            with self._http.stream(method, path, **more) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise _refusal(reply)
                yield reply
        except httpx.TransportError as error:
            raise self._away(error) from error

    def jobs(self, state: str, limit: int) -> list[dict[str, Any]]:
        """Those in this state, the newest first."""
        return list(self._ask("GET", "/v1/jobs", params={"state": state, "limit": str(limit)})["data"])

    def job(self, job: str) -> dict[str, Any]:
        """How it stands."""
        return self._ask("GET", f"/v1/jobs/{_job(job)}")

    def why(self, job: str) -> dict[str, Any]:
        """Where its time went."""
        return self._ask("GET", f"/v1/jobs/{_job(job)}/why")

    def cancel_job(self, job: str) -> dict[str, Any]:
        """End it; the job then."""
        return self._ask("POST", f"/v1/jobs/{_job(job)}/cancel")

    def events_page(self, job: str, after: int) -> dict[str, Any]:
        """Some of its events behind number `after`, in no dialect."""
        headers = {"accept": "application/json"}
        return self._ask("GET", f"/v1/jobs/{_job(job)}/events", params={"after": str(after)}, headers=headers)

    def job_events(self, job: str, after: str = "") -> AbstractContextManager[httpx.Response]:
        """The stream of its answer, from behind the frame `after` on."""
        headers = {"last-event-id": after} if after else {}
        return self.stream("GET", f"/v1/jobs/{_job(job)}/events", headers=headers)

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            reply = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise self._away(error) from error
        if reply.status_code >= 400:
            raise _refusal(reply)
        try:
            found: dict[str, Any] = reply.json()
            return found
        except ValueError as error:
            raise ServiceError(f"What answers at {self._shown} is not this service: it sent no JSON.") from error

    def _away(self, error: Exception) -> ServiceAway:
        said = _ERRNO.sub("", str(error)) or type(error).__name__
        return ServiceAway(
            f"The service does not answer at {self._shown} ({said}). Start it with `ops/run`, or name another with --url."
        )


_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


def _said(asked: dict[str, Any]) -> dict[str, Any]:
    """What was said of it."""
    return {name: value for name, value in asked.items() if value is not None}


def _part(name: str) -> str:
    """An id as one part of a path, whatever somebody typed. Raises `ServiceError` for nothing, which would be another path."""
    if not name:
        refused = ServiceError("A name is missing: what was typed for it is empty.")
        refused.usage = True
        raise refused
    return quote(name, safe="")


def _job(job: str) -> str:
    """The same of a job's. Raises `ServiceError` for what can be none."""
    if job and not is_job_id(job):
        raise ServiceError(
            f"There is no job '{job}', nor can there be one: `rockchipllama jobs` lists those there are."
        )
    return _part(job)


_COMMANDS = {
    "GET /v1/models": "models available",
    "GET /v1/batches": "batch list",
    "POST /v1/models/unload": "models unload",
}
"""Routes that messages of the service send to, and the commands that ask them."""


def _refusal(reply: httpx.Response) -> ServiceError:
    try:
        error = reply.json()["error"]
        message = error if isinstance(error, str) else str(error["message"])  # Ollama's have no parts
    except (ValueError, KeyError, TypeError):
        message = f"The service answered with the status {reply.status_code}."
    for route, command in _COMMANDS.items():
        message = message.replace(route, f"`rockchipllama {command}`")
    if reply.status_code == 401:
        message += " The commands take it from ROCKCHIPLLAMA_SERVICE_KEY."
    again = reply.status_code >= 500 or reply.status_code == 429
    refused = ServiceAway(message) if again else ServiceError(message)
    refused.usage = reply.status_code == 400
    return refused
