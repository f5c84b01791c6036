"""What the HTTP side of the service may be told."""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from tasks.settings import LIVE, LIVE_SECONDS, CommaList, Settings, split_commas

STORES = ("s3", "gs", "az", "https", "file")
"""Beginnings of the URLs of object stores."""


class ApiSettings(Settings):
    """Where the API listens, whom it answers, and how large a request may be."""

    title: ClassVar[str] = "HTTP API"

    host: str = Field(
        "127.0.0.1", description="Address to listen on; beyond loopback needs `api_keys` or `trusted_networks`."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that open the API (`Authorization: Bearer KEY` or `x-api-key: KEY`), separated by commas."
    )
    trusted_networks: CommaList = Field(
        (), description="Networks whose clients need no key, such as `192.168.1.0/24`, separated by commas."
    )
    trusted_proxies: CommaList = Field(
        (),
        description="Networks of reverse proxies whose `X-Forwarded-For` is believed, separated by commas.",
    )
    cors_origins: CommaList = Field(
        (),
        description="Web origins whose pages may call the API from a browser, separated by commas; `*` is any. "
        "Pages served from this machine always may.",
    )
    allowed_hosts: CommaList = Field(
        (),
        description="Names under which the API may be called without a key, and Flower without a login, separated by commas; "
        "`*` is any. Addresses, this machine's own names and names without a dot always may.",
    )
    patience: float = Field(
        2.0,
        gt=0,
        description="Seconds a stream waits for its first event before it answers 200 and goes on waiting inside it.",
        json_schema_extra=LIVE_SECONDS,
    )
    keep_alive_comment: float = Field(
        10.0,
        ge=0.01,
        description="Seconds between the comment lines that keep a silent stream's connection open.",
        json_schema_extra=LIVE_SECONDS,
    )
    stream_grace: float = Field(
        0.0,
        ge=0,
        description="Seconds a streamed answer goes on after its client has left, unless that asks for more "
        "(`x-stream-grace`); 0 ends it at once.",
        json_schema_extra=LIVE_SECONDS,
    )
    stream_grace_limit: float = Field(
        300.0,
        ge=0,
        description="Seconds of that which a client may ask for; who asks for more gets so many.",
        json_schema_extra=LIVE_SECONDS,
    )
    response_ttl: float = Field(
        86_400.0,
        ge=0.01,
        le=1e8,
        description="Seconds a stored response (`/v1/responses`) is kept after its end.",
        json_schema_extra=LIVE_SECONDS,
    )
    stalled_client: float = Field(
        60.0, gt=0, description="Seconds a client may leave a stream unread before it counts as gone."
    )
    head_timeout: float = Field(30.0, gt=0, description="Seconds the headers of a request may take to arrive.")
    body_timeout: float = Field(
        30.0, gt=0, description="Seconds a request's body may stay silent before the rest of it has arrived."
    )
    upload_timeout: float = Field(
        600.0, gt=0, description="Seconds a request's body may take to arrive, however steadily it comes."
    )
    max_connections: int = Field(
        2000,
        ge=1,
        description="Connections one API process holds open, fewer where it may not open so many files; others get 503.",
    )
    max_body: int = Field(10_000_000, ge=1_000, description="Bytes of the largest request body.")
    max_file: int = Field(512_000_000, ge=1_000, description="Bytes of the largest file that may be uploaded.")
    files_url: str | None = Field(
        None,
        description="The object store for files of batches: `s3://BUCKET/PREFIX`, `gs://`, `az://`, or `file:///PATH` for a "
        "share that every API machine mounts. Unset: the folder `files` of the data directory.",
    )
    max_messages: int = Field(2048, ge=1, description="Messages in one conversation.")
    max_prompts: int = Field(
        128, ge=1, description="Answers one completion request may ask for: its prompts times `n`."
    )
    max_inputs: int = Field(
        2048, ge=1, description="Inputs of one request for embeddings, or documents of one to rerank."
    )
    max_stop: int = Field(4, ge=1, description="Stop sequences in one request.")
    claude_model: str | None = Field(
        None,
        description="The model that answers where a client of Anthropic's API asks for a `claude-…` that is not there. "
        "Unset: the default model.",
        json_schema_extra=LIVE,
    )
    side_requests: bool = Field(
        True,
        description="Whether Open WebUI's requests for titles, tags and follow-ups go behind chats (docs/open-webui.md).",
        json_schema_extra=LIVE,
    )
    spare_tools: bool = Field(
        True,
        description="Whether the tools that Open WebUI adds to every chat by itself are left out for models that know none, or "
        "of whose context they would take more than half (docs/open-webui.md).",
        json_schema_extra=LIVE,
    )
    clock_last: bool = Field(
        True,
        description="Whether a system message that begins with the clock, as Home Assistant's may, is read with the clock at "
        "its end (docs/home-assistant.md).",
        json_schema_extra=LIVE,
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="What calls to webhooks are signed with, 16 characters or more; the same for all API processes. Unset: "
        "jobs have no webhooks.",
    )
    webhook_networks: CommaList = Field(
        (),
        description="Networks besides the internet in which webhooks may be called, such as `192.168.1.0/24`, separated by "
        "commas.",
    )
    webhook_certificates: Path | None = Field(
        None,
        description="A file of certificates (PEM) that webhooks' servers may have theirs from, besides those that this machine "
        "trusts.",
    )
    drain: float = Field(
        10.0, ge=0, description="Seconds that open answers may go on after a stop signal before they are ended."
    )

    @field_validator(
        *("api_keys", "trusted_networks", "trusted_proxies", "cors_origins", "allowed_hosts", "webhook_networks"),
        mode="before",
    )
    @classmethod
    def _words(cls, value: Any) -> Any:
        return split_commas(value)

    @field_validator("api_keys")
    @classmethod
    def _usable_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            plain = key.get_secret_value()
            # A header cannot carry anything else, so such a key would lock everybody out.
            if not plain or not all("!" <= char <= "~" for char in plain):
                raise ValueError("an API key must be visible ASCII characters without spaces")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr | None) -> SecretStr | None:
        secret = value.get_secret_value() if value is not None else None
        if secret is not None and len(secret) < 16:
            raise ValueError("it should have 16 characters or more")
        if secret is not None and secret.startswith("whsec_"):
            try:
                base64.b64decode(secret[6:], validate=True)
            except ValueError:
                raise ValueError("what follows 'whsec_' should be base64") from None
        return value

    @field_validator("webhook_certificates")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
            except OSError as error:
                raise ValueError(f"no certificates can be read there: {error}") from None
        return value

    @field_validator("files_url")
    @classmethod
    def _object_store(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in STORES:
            raise ValueError(f"it should begin with one of {', '.join(f'{scheme}://' for scheme in STORES)}")
        if value is not None and "@" in urlsplit(value).netloc:
            raise ValueError(
                "it can have no password; the store's own variables are for that (AWS_SECRET_ACCESS_KEY for S3)"
            )
        if value is not None and find_spec("obstore") is None:
            raise ValueError("its client is not installed: `.venv/bin/pip install obstore` does that")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "*" and not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError(f"'{name}' is no host name: give the name alone, without http:// and without a port")
        return tuple(name.lower() for name in value)

    @field_validator("trusted_networks", "trusted_proxies", "webhook_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_network(word, strict=False)) for word in value)
