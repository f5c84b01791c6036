"""Who may reach the embedded Valkey over the network: boards with a token, each token a user of Valkey's own.

A token is NAME.SECRET; Valkey keeps the digest of it. One that is revoked loses its connections in the same moment.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ops.up.errors import UpError

SCHEME = "rl"
FIRST = "boards"
"""The name of the token that is made when a service is shared for the first time."""
USER = "board."
"""Before the name of a token, it is the name of its user."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_FORM = f"It must look like {SCHEME}://NAME.SECRET@HOST:PORT, as `up --share` prints it."
_SECRET = re.compile(r"[A-Za-z0-9_-]{20,64}")
_KEPT = re.compile(rf"user {re.escape(USER)}\S+ on (?:\S+ )*?#([0-9a-f]{{64}})")
RIGHTS = (
    *("resetkeys", "~rl:[^a]*", "resetchannels", "&rl:*", "&rl:/0.celery.pidbox"),
    *("nocommands", "+@all", "-@admin", "-@dangerous", "+info"),
)
"""What a board may do, in Valkey's words: everything with jobs and models. Not the API keys, the only name behind `rl:` that
begins with an a, and nothing that concerns the server. Celery's transport asks for `info`, and subscribes to that one channel
as a pattern, which Valkey compares letter by letter."""


class TokenRefused(UpError):
    """Raised when a token cannot be made, used or found as asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """What lets a board in."""

    name: str
    secret: str

    @property
    def user(self) -> str:
        """The user of Valkey that it stands for."""
        return USER + self.name

    def url(self, host: str, port: int) -> str:
        """What `rockchipllama join` takes."""
        return f"{SCHEME}://{self.name}.{self.secret}@{_host(host)}:{port}"

    def redis_url(self, host: str, port: int) -> str:
        """The same for a client of Redis."""
        return f"redis://{self.user}:{self.secret}@{_host(host)}:{port}/0"


def parse_token(text: str) -> Token:
    """The token in NAME.SECRET. Raises `TokenRefused`, which repeats nothing of it."""
    name, _, secret = text.partition(".")
    if not NAME.fullmatch(name) or not _SECRET.fullmatch(secret):
        raise TokenRefused(f"The token in it is damaged or cut off. {_FORM}", usage=True)
    return Token(name, secret)


def parse(url: str) -> tuple[Token, str, int]:
    """The token, host and port in what `up --share` printed. Raises `TokenRefused`, which repeats nothing of it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise TokenRefused(f"This is nothing that can be joined. {_FORM}", usage=True) from None
    if parts.scheme != SCHEME or not host or not port or parts.path.strip("/") or parts.query or parts.password:
        raise TokenRefused(f"This is nothing that can be joined. {_FORM}", usage=True)
    return parse_token(parts.username or ""), host, port


class Access:
    """The files behind it, in the data directory: Valkey's list of users, and the token that `up --share` shows."""

    def __init__(self, data_dir: Path) -> None:
        self.users = data_dir / "boards.acl"
        self._shown = data_dir / "board-token"

    def prepare(self, password: str) -> None:
        """Before Valkey starts: `password` is what this machine's own processes show from now on. The first time, a token is
        made as well."""
        lines = self.users.read_text().splitlines() if self.users.exists() else None
        if lines is None:
            token = Token(FIRST, new_secret())
            write_private(self._shown, f"{token.name}.{token.secret}")
            lines = [f"user {token.user} on #{digest_of(token.secret)}"]
        # What boards may do is this version's, whatever an earlier one wrote.
        kept = [f"{found[0]} {' '.join(RIGHTS)}" for line in lines if (found := _KEPT.match(line))]
        own = f"user default on #{digest_of(password)} ~* &* +@all"
        write_private(self.users, "".join(f"{line}\n" for line in [own, *kept]))

    def digests(self) -> list[str]:
        """Those of all tokens."""
        return [found[1] for line in self.users.read_text().splitlines() if (found := _KEPT.match(line))]

    def shown(self) -> Token | None:
        """The token to show; None once it was revoked."""
        try:
            name, _, secret = self._shown.read_text().partition(".")
        except FileNotFoundError:
            return None
        return Token(name, secret)

    def forget(self, name: str) -> None:
        """Show the token of that name no more."""
        token = self.shown()
        if token is not None and token.name == name:
            self._shown.unlink()


def new_secret() -> str:
    """Something nobody can guess."""
    return secrets.token_urlsafe(32)


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def digest_of(secret: str) -> str:
    """What is kept of it."""
    # It is random and long, so no salt and no slow digest is needed.
    return hashlib.sha256(secret.encode()).hexdigest()


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
