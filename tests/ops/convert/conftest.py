"""A toolkit that stands in for Rockchip's, and a model small enough to write by hand."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}</think>{% endif %}{% endif %}"
)
WORDS = ("<s>", "a", "river", "begins", "as", "rain", "[UNK]", "that")
CONVERSATION = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
RECIPE = """\
source = "Tiny"
output = "tiny-rk3588"

[build]
target_platform = "rk3588"
dtype = "w8a8"
max_context = 2048

[calibration]
file = "calibration.jsonl"

[evaluation]
text = "text.txt"
tokens = 16
questions = ["Capital?"]

[manifest]
id = "tiny"
family = "tiny"

[manifest.template_options]
enable_thinking = false
"""


def install(folder: Path, version: str = "1.3.0") -> None:
    """Put the stand-in where an interpreter that looks into `folder` takes it for the toolkit."""
    (folder / "rkllm").mkdir(parents=True)
    (folder / "rkllm/__init__.py").touch()
    shutil.copy(Path(__file__).with_name("toolkit_stand_in.py"), folder / "rkllm/api.py")
    (folder / "torch.py").write_text("from rkllm.api import Numbers as tensor\n")
    about = folder / f"rkllm_toolkit-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rkllm-toolkit\nVersion: {version}\n")


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, importable in this process as `rkllm.api`."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    yield importlib.import_module("rkllm.api")
    for name in ("rkllm", "rkllm.api", "torch"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, data, and a recipe that is in order."""
    place = tmp_path / "work"
    model = place / "Tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"hidden_size": 640, "intermediate_size": 2048}))
    (model / "model.safetensors").write_bytes(bytes(64))
    (model / "LICENSE").write_text("do as you like")
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": TEMPLATE}))
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    (model / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "Whitespace"},
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
            }
        )
    )
    (place / "calibration.jsonl").write_text(json.dumps(CONVERSATION) + "\n\n" + json.dumps(CONVERSATION) + "\n")
    (place / "text.txt").write_text("a river begins as rain that " * 5)
    (place / "recipe.toml").write_text(RECIPE)
    return place
