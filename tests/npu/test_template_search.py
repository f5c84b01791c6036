"""Where a model's chat template comes from, first to last."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import chat_template
from npu.errors import ModelRefused
from npu.model import Model
from npu.template_search import find_template
from tests.npu.test_gguf import ENTRIES, gguf


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A GGUF with a template of its own, and nothing beside it."""
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(gguf({**ENTRIES, "tokenizer.chat_template": "gguf {{ bos_token }}{{ eos_token }}"}))
    return Model(id="tiny", engine="llamacpp", folder=tmp_path, path=weights)


def rendered(model: Model) -> str:
    template = chat_template(model)
    assert template is not None
    return template.render([])


def configure(model: Model, config: object) -> None:
    (model.folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_inside_the_weights(model: Model) -> None:
    assert rendered(model) == "gguf <s></s>"


def test_beside_the_weights_with_its_own_special_tokens(model: Model) -> None:
    configure(model, {"chat_template": "config {{ bos_token }}{{ eos_token }}", "bos_token": {"content": "B"}})
    assert rendered(model) == "config B</s>"


def test_of_several_the_default_one(model: Model) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    configure(model, {"chat_template": named})
    assert rendered(model) == "default"


def test_a_template_file_comes_before_the_configuration(model: Model) -> None:
    configure(model, {"chat_template": "config"})
    (model.folder / "chat_template.jinja").write_text("file")
    assert rendered(model) == "file"


def test_the_manifest_comes_first(model: Model) -> None:
    (model.folder / "chat_template.jinja").write_text("file")
    assert (
        rendered(replace(model, template="manifest {{ mood }}", template_options={"mood": "calm"})) == "manifest calm"
    )


def test_none_at_all_is_a_base_model(tmp_path: Path) -> None:
    assert find_template(Model(id="base", engine="llamacpp", folder=tmp_path), None) is None


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_damaged_configuration_is_refused(model: Model, text: str) -> None:
    (model.folder / "tokenizer_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelRefused, match=r"tokenizer_config\.json"):
        chat_template(model)
