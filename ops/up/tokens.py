"""The tokens of a shared Valkey that runs: made, listed and revoked there."""

from __future__ import annotations

from typing import cast

import redis
from redis.exceptions import NoPermissionError

from ops.up.sharing import NAME, RIGHTS, USER, Token, TokenRefused, digest_of, new_secret
from tasks.connection import text


def listens_on(client: redis.Redis) -> tuple[str, int]:
    """The address and port where boards find the Valkey of `client`. Raises `TokenRefused` when that is shared with none, or
    when it is not this machine's to share."""
    try:
        told = cast("dict[bytes, bytes]", client.config_get("port", "bind", "aclfile"))
    except NoPermissionError as error:
        raise TokenRefused(
            "Tokens are for the machine to make and revoke where the service runs with `up --share`."
        ) from error
    found = {text(name): text(value) for name, value in told.items()}
    if not found["aclfile"] or found["port"] == "0":
        raise TokenRefused(
            "The service is not shared. Start it with `rockchipllama up --share`; a Redis of your own has users of its own."
        )
    return found["bind"].split()[0], int(found["port"])


def names(client: redis.Redis) -> list[str]:
    """The names of all tokens."""
    users = map(text, cast("list[str]", client.acl_users()))
    return sorted(user.removeprefix(USER) for user in users if user.startswith(USER))


def create(client: redis.Redis, name: str) -> Token:
    """Make a token; its secret is nowhere else. Raises `TokenRefused`."""
    if not NAME.fullmatch(name):
        raise TokenRefused("A token's name has 1 to 32 characters: a to z, 0 to 9, and - behind the first.", usage=True)
    if name in names(client):
        raise TokenRefused(f"There is a token named '{name}' already. Revoke it first, or choose another name.")
    token = Token(name, new_secret())
    client.execute_command("ACL", "SETUSER", token.user, "on", f"#{digest_of(token.secret)}", *RIGHTS)  # type: ignore[no-untyped-call]
    client.acl_save()
    return token


def revoke(client: redis.Redis, name: str) -> None:
    """Make a token useless, and cut off whoever is there with it. Raises `TokenRefused` when there is none."""
    known = names(client)
    if name not in known:
        raise TokenRefused(f"There is no token '{name}'. There are: {', '.join(known) or 'none'}.")
    client.acl_deluser(USER + name)
    client.acl_save()
