"""What a process gets of the environment of the one that starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from api.settings import ApiSettings
from ops import configuration, environment
from ops.client_settings import ClientSettings
from ops.flower.settings import FlowerSettings
from ops.up.part import Part
from tests.stack import LIMIT, eventually


def test_every_secret_is_known_as_one() -> None:
    """A new one must be named where the other parts' environment is made."""
    secrets = {(setting.owner, setting.variable) for setting in configuration.declared() if setting.secret}
    beside = (ApiSettings, ClientSettings, FlowerSettings)
    assert {name for owner, name in secrets if owner in beside} == environment.API_SECRETS - {"FLOWER_BASIC_AUTH"}
    assert {name for owner, name in secrets if owner not in beside} == environment.BOARD_SECRETS - {"HF_TOKEN"}


def test_what_is_left_out_is_left_out_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are read without regard to case."""
    monkeypatch.setenv("rockchipllama_api_keys", "sesame")
    monkeypatch.setenv("ROCKCHIPLLAMA_PORT", "1")
    found = environment.for_child({"EXTRA": "2"}, environment.API_SECRETS)
    assert (found["ROCKCHIPLLAMA_PORT"], found["EXTRA"]) == ("1", "2")
    assert "sesame" not in found.values()
    environment.forget(environment.API_SECRETS)
    assert "sesame" not in os.environ.values()


@pytest.mark.parametrize("secrets", [True, False])
def test_a_part_knows_them_only_if_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: bool) -> None:
    """The API; not the board, not the store."""
    monkeypatch.setenv("ROCKCHIPLLAMA_API_KEYS", "sesame")
    code = "import os; print('ROCKCHIPLLAMA_API_KEYS' in os.environ)"
    part = Part("x", [sys.executable, "-c", code], log=tmp_path / "x.log", secrets=secrets)
    output = part.start()
    eventually(lambda: not output.read(), limit=LIMIT, what="its end")
    eventually(lambda: part.ended() is not None, what="its end")
    output.close()
    part.close()
    assert list(part.tail) == [str(secrets)]
