"""What `up` says, and to whom: people at a terminal, a file, a collector of logs."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ops.program import elsewhere, program
from ops.up import listen, sharing
from tasks import systemd

log = logging.getLogger("rockchipllama.up")


def trial(url: str, networks: Sequence[str], *, needs_key: bool) -> str:
    """What is said before the line to try, which asks `url` and comes from its address when it is pasted on this machine."""
    address = ipaddress.ip_address(urlsplit(url).hostname or "")
    if needs_key or not networks or any(address in ipaddress.ip_network(network) for network in networks):
        return "Try it:"
    return (
        f"This machine ({address}) is in none of the trusted networks ({', '.join(networks)}). Try it from one that is, or "
        f"make a key ({program()} keys create NAME) and add -H 'Authorization: Bearer YOUR-KEY':"
    )


def tell_how_to_join(access: sharing.Access, listens_on: str, port: int) -> None:
    """The line to type on another board, with the token in it only where a person reads it, and no log keeps it."""
    token, host = access.shown(), listen.network_address(listens_on)
    if token is None or _is_kept():
        say(f"  boards  join at {host}:{port}; `{program()} boards invite NAME` makes a token")
    else:
        say(f"  boards  {elsewhere()} join {token.url(host, port)}")


def say(text: str) -> None:
    """One thing the user should know, on stdout; to a collector, an entry like any other."""
    if _json():
        log.info(" ".join(text.split()))
        return
    with contextlib.suppress(OSError):  # whoever read it is gone
        print(text, flush=True)


def capabilities(model: dict[str, Any]) -> list[str]:
    """What a model of the list of models can do."""
    return list(model.get("capabilities", ()))


def in_words(model: dict[str, Any]) -> str:
    """Such a model in a few words."""
    engine = model.get("engine_version") or model.get("engine")
    context = f", context {length}" if (length := model.get("context_length")) else ""
    return f"{model.get('id', '?')} on {engine}{context}" if engine else str(model.get("id", "?"))


def _is_kept() -> bool:
    """Whether what is said goes to a log that others read as well: systemd's journal, a collector's, or that of a container,
    which keeps what it shows on a terminal, too."""
    from npu.hardware.kernel import in_container  # of npu, as in `start`

    return not sys.stdout.isatty() or in_container() or systemd.listens() or _json()


def _json() -> bool:
    from tasks.logs import JsonLines

    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)
