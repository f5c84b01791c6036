"""The other boards of the service, from which a model is copied before the internet is asked for it."""

from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

import msgspec
import redis

from npu.manifest import FILE_NAME
from npu.model import RESERVED, is_model_id
from tasks.asking import ask
from tasks.board.pull.asked import Asked, Name, Repository
from tasks.board.pull.beside import PlannedFile
from tasks.board.pull.download import direct_opener
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.hub import HubFile, Listing
from tasks.board.pull.index import IndexModel
from tasks.board.pull.machine import Machine
from tasks.board.pull.plan import Plan, first_fitting, manifest_of
from tasks.board.pull.weights import Candidate, because, candidates, megabytes
from tasks.board.route import address_towards, redis_host
from tasks.card import Card
from tasks.commands import CommandCode, Lend, LentFile, Loan
from tasks.connection import UNREACHABLE
from tasks.errors import CommandFailed
from tasks.roster import read_roster

log = logging.getLogger("rockchipllama.board")

PATIENCE: Final = 900.0
"""Seconds a board may take to know the digests of a model, all of which it may have to read."""
REACH: Final = 5.0
"""Seconds in which its answer over HTTP must begin."""
MOST_FILES: Final = 64

_FILE = re.compile(r"\w[\w.+ -]{0,250}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_decoder = msgspec.json.Decoder(Loan)


class Neighbours:
    """Of the board called `board`; `url` is the Redis of the service, which `client` asks."""

    def __init__(self, client: redis.Redis, board: str, url: str) -> None:
        self._client = client
        self._board = board
        self._url = url

    def having(self, asked: Asked) -> Iterator[tuple[str, str]]:
        """The boards that have what is asked for, each with the model's id. None while Redis is away."""
        names = names_of(asked)
        if not names:
            return
        try:
            found = read_roster(self._client)
        except UNREACHABLE as error:
            log.info("no other board is asked for %s, Redis is away: %s", names[0], error)
            return
        living = {breath.board for breath in found.breaths} - {self._board}
        for card in sorted(found.cards, key=lambda card: card.board):
            if card.board in living and not card.base and _called(card, names):
                yield card.board, card.id

    def plan(self, board: str, model: str, asked: Asked, machine: Machine, index: Mapping[str, IndexModel]) -> Plan:
        """What to copy from a board. Raises `PullFailed` when it gives nothing, cannot be reached, or has another file than this
        machine would fetch."""
        loan = self._loan(board, model)
        weights = loan.files[0]
        listing = Listing("", "", tuple(HubFile(file.name, file.size, file.sha256) for file in loan.files))
        found = next((each for each in candidates(listing) if each.name == weights.name), None)
        if found is None:
            raise PullFailed(CommandCode.SOURCE_MISSING, f"{weights.name} is no name of a model's file.")
        chosen = replace(found, soc=loan.soc or found.soc) if found.engine == "rkllm" else found
        _check(chosen, weights, asked, machine, index)
        self._reach(f"{loan.url}/{quote(weights.name)}")
        names = [name for name in (*loan.names, *names_of(asked)[:1]) if name != loan.id]
        own = any(file.name == FILE_NAME for file in loan.files)
        return Plan(
            id=loan.id,
            files=tuple(
                PlannedFile(file.name, f"{loan.url}/{quote(file.name)}", file.size, file.sha256, direct=True)
                for file in loan.files
            ),
            why=f"{weights.name}{megabytes(weights.size)} is copied from the board '{board}', "
            f"{because(chosen.engine, machine)}.",
            source={"board": board, "file": weights.name},
            manifest=None if own else manifest_of(loan.id, chosen.engine, weights.name, names),
            remarks=(f"Copied from the board '{_plain(board)}'.",),
        )

    def _loan(self, board: str, model: str) -> Loan:
        """Raises `PullFailed`."""
        host = redis_host(self._url)
        try:
            address = address_towards(host) if host is not None else ""
            loan = _decoder.decode(ask(self._client, board, Lend(model, address), PATIENCE))
        except CommandFailed as error:
            raise PullFailed(CommandCode.NETWORK, str(error)) from error
        except (*UNREACHABLE, msgspec.DecodeError) as error:
            raise PullFailed(CommandCode.NETWORK, f"The board '{board}' could not be asked: {error}.") from error
        # The names become files here, whatever the other board says.
        sane = is_model_id(loan.id) and loan.id not in RESERVED and loan.url.startswith("http://")
        if not sane or not 0 < len(loan.files) <= MOST_FILES or not all(map(_is_sane, loan.files)):
            raise PullFailed(CommandCode.DAMAGED, f"The board '{board}' answered what makes no model.")
        return loan

    def _reach(self, url: str) -> None:
        """Raises `PullFailed` when the other board does not answer over HTTP."""
        try:
            with closing(direct_opener().open(urllib.request.Request(url, method="HEAD"), timeout=REACH)):
                pass
        except (urllib.error.URLError, OSError) as error:
            why = getattr(error, "reason", None) or error
            raise PullFailed(CommandCode.NETWORK, f"it cannot be reached from here ({why})") from error


def names_of(asked: Asked) -> list[str]:
    """What cards call it, in lower case; nothing for what no board can have."""
    match asked:
        case Name(name):
            return list(dict.fromkeys((name, name.removesuffix(":latest"))))
        case Repository(repository, quantization, _, "main"):
            tail = f":{quantization}" if quantization and quantization.lower() != "latest" else ""
            return [f"{repository}{tail}".lower()]
    return []


def _called(card: Card, names: list[str]) -> bool:
    return not {card.id, *map(str.lower, card.names)}.isdisjoint(names)


def _is_sane(file: LentFile) -> bool:
    return bool(_FILE.fullmatch(file.name) and _DIGEST.fullmatch(file.sha256) and file.size >= 0)


def _check(
    chosen: Candidate, weights: LentFile, asked: Asked, machine: Machine, index: Mapping[str, IndexModel]
) -> None:
    """Whether it is what this machine would fetch. Raises `PullFailed`."""
    refusal = chosen.refusal(machine)
    if refusal is not None:
        raise PullFailed(CommandCode.DOES_NOT_FIT, f"{weights.name} {refusal}.")
    match asked:
        case Name(name) if name in index:
            best, _ = first_fitting(index[name], machine)
            if PurePosixPath(best.file).name != weights.name:
                raise PullFailed(
                    CommandCode.DOES_NOT_FIT, f"It has {weights.name}, and {best.file} is what suits here."
                )
            if best.digest not in (None, weights.sha256):
                raise PullFailed(CommandCode.DAMAGED, f"Its {weights.name} is another file than the index knows.")
        case Repository(_, _, str(file)) if PurePosixPath(file).name != weights.name:
            raise PullFailed(CommandCode.SOURCE_MISSING, f"It has {weights.name}, and not {file}.")


def _plain(text: str) -> str:
    """A board's name, fit for one line of a comment."""
    return "".join(each for each in text if each.isprintable())[:100]
