"""A manifest is read strictly, and says where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.engine import Ability, Pooling
from npu.errors import ModelRefused
from npu.manifest import SAMPLING_KEYS, read_manifest
from npu.manifest_keys import KEYS
from npu.model import LoraAdapter

FULL = """\
id = "tiny"
names = ["tiny:1b", "Tiny"]
engine = "llamacpp"
file = "weights.gguf"
context_length = 4096
family = "tiny"
parameters = "1B"
quantization = "Q8_0"
soc = "rk3588"
stop = ["END"]
chat_template = "chat.jinja"
tool_format = "hermes"
thinking_format = "none"
notes = ["Small."]

[sampling]
temperature = 1
top_k = 5

[template_options]
enable_thinking = false

[engine_options]
batch_size = 32
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "Tiny-1B-Instruct"
    made.mkdir()
    (made / "weights.gguf").write_bytes(b"GGUF")
    (made / "chat.jinja").write_text("{{ messages }}")
    return made


def read(folder: Path, text: str):  # type: ignore[no-untyped-def]
    path = folder / "manifest.toml"
    path.write_text(text)
    return read_manifest(path)


def test_everything_it_may_say(folder: Path) -> None:
    model = read(folder, FULL)
    assert (model.id, model.names) == ("tiny", ("tiny:1b", "Tiny", "weights"))
    assert (model.engine, model.path, model.context_length) == ("llamacpp", folder / "weights.gguf", 4096)
    assert (model.family, model.parameters, model.quantization, model.soc) == ("tiny", "1B", "Q8_0", "rk3588")
    assert (model.tool_format, model.thinking_format) == ("hermes", "none")
    assert (model.stop, model.notes, model.template) == (("END",), ("Small.",), "{{ messages }}")
    assert dict(model.template_options) == {"enable_thinking": False}
    assert dict(model.engine_options) == {"batch_size": 32}
    assert model.size_bytes == 4
    assert model.created > 0


def test_sampling_starts_from_the_house_and_then_the_manifest(folder: Path) -> None:
    sampling = read(folder, FULL).sampling(top_p=0.5)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repeat_penalty) == (1, 5, 0.5, 1.1)
    house = read(folder, "").sampling()
    assert (house.temperature, house.top_k, house.top_p, house.repeat_penalty) == (0.8, 20, 0.9, 1.1)


def test_an_empty_one_takes_the_only_file_there(folder: Path) -> None:
    model = read(folder, "")
    assert (model.engine, model.path, model.id) == ("llamacpp", folder / "weights.gguf", "weights")


def test_a_model_without_weights_is_called_like_its_folder(folder: Path) -> None:
    assert read(folder, 'engine = "echo"').id == "tiny-1b-instruct"


WRONG = [
    ("colour = 1", "line 1: `colour` is not a key"),
    ("\n\nid = 7", "line 3: `id` must be a string"),
    ('id = "Über"', "line 1: `id` is 'Über'"),
    ('id = "loaded"', "line 1: `id` is 'loaded', where the API has something else"),
    ('names = ["Unload"]', "line 1: `names` holds 'Unload', where the API has something else"),
    ('names = ["a", 1]', "`names` must be a list of strings"),
    ('names = ["a b"]', "no blanks"),
    ('engine = "gpu"', "line 1: `engine` is 'gpu'"),
    ('file = "../secret.gguf"', "inside the manifest's own folder"),
    ('file = "/etc/passwd"', "inside the manifest's own folder"),
    ('file = "other.gguf"', "there is no such file"),
    ('chat_template = "none.jinja"', "there is no such file"),
    ("context_length = 0", "must be between 1"),
    ("context_length = true", "must be a whole number or a string"),
    ('context_length = "long"', "is 'long': it must be between 1 and 16777216, or `auto`"),
    ('fill_in_middle = ["<PRE>"]', "must be three strings"),
    ('soc = "z80"', "chips known here"),
    ("[sampling]\n\nheat = 1", "line 3: `sampling.heat` is not a sampling field"),
    ('[sampling]\ntemperature = "hot"', "must be a float"),
    ("[sampling]\ntop_p = 3.0", "line 2: `sampling.top_p` cannot be honoured"),
    ("[sampling]\ntop_k = 1.5", "must be a int"),
    ("[template_options]\nx = [1]", "line 2: `template_options.x` must be"),
    ("[engine_options]\nspeed = 1", "line 2: `engine_options.speed` is not an option of the engine llamacpp"),
    ("[engine_options]\nbatch_size = 1", "must be between 8 and 2048"),
    ("[engine_options]\nbatch_size = 9.5", "must be a whole number"),
    ("sampling = 1", "must be a table"),
    ("id = ", "is not TOML"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_what_is_wrong_is_refused_with_its_place(folder: Path, text: str, words: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        read(folder, text)
    assert words in str(refused.value)
    assert "manifest.toml" in str(refused.value)


def test_two_candidates_must_be_told_apart(folder: Path) -> None:
    (folder / "more.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelRefused, match="Name one"):
        read(folder, "")


def test_an_engine_that_needs_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="needs weights"):
        read(tmp_path, 'engine = "llamacpp"')
    with pytest.raises(ModelRefused, match="neither an engine nor weights"):
        read(tmp_path, "")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "manifest.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelRefused, match="cannot be read"):
        read_manifest(tmp_path / "manifest.toml")


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for key in (*KEYS, *SAMPLING_KEYS):
        assert f"`{key}`" in page


def test_what_a_model_is_for(folder: Path) -> None:
    """It writes unless the manifest says otherwise; the echo does whatever is asked."""
    assert read(folder, 'engine = "llamacpp"').abilities == {Ability.TEXT}
    assert read(folder, 'engine = "echo"').abilities == set(Ability)
    (folder / "weights.rkllm").write_bytes(b"")
    model = read(folder, 'file = "weights.rkllm"\nabilities = ["embedding"]\npooling = "mean"')
    assert (model.abilities, model.pooling) == ({Ability.EMBEDDING}, Pooling.MEAN)
    assert read(folder, 'file = "weights.rkllm"').pooling is Pooling.LAST
    model = read(folder, 'file = "weights.rkllm"\nabilities = ["rerank"]\nrerank_template = "chat.jinja"')
    assert model.rerank_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('abilities = ["embedding"]', "line 2.*`abilities`.*llamacpp cannot do"),
        ('abilities = ["cooking"]', "line 2.*cooking.*text, embedding, rerank"),
        ("abilities = []", "line 2.*empty"),
        ('pooling = "max"', "line 2.*max.*last, mean"),
        ('load = "never"', "line 2.*never.*on-demand, preload, manual"),
        ("pin = 1", "line 2.*`pin` must be true or false"),
        ("instances = 9", "line 2.*`instances` is 9: it must be between 1 and 8"),
    ],
)
def test_what_a_model_cannot_be_for(folder: Path, text: str, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        read(folder, f'file = "weights.gguf"\n{text}')


def test_adapters(folder: Path) -> None:
    """Each with its file and scale; a file that is one is not taken for the weights, whatever it is called."""
    for name in ("weights.rkllm", "poet_lora.rkllm", "pirate.gguf"):
        (folder / name).write_bytes(b"")
    (folder / "weights.gguf").unlink()
    table = '[adapters]\npoet = "poet_lora.rkllm"\npirate = { file = "pirate.gguf", scale = 0.5 }'
    model = read(folder, table)
    assert model.path == folder / "weights.rkllm"
    assert model.adapters == (
        LoraAdapter("poet", folder / "poet_lora.rkllm", 1.0),
        LoraAdapter("pirate", folder / "pirate.gguf", 0.5),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[adapters]\npoet = "none.rkllm"', "line 3: `adapters.poet` names 'none.rkllm'.*no such file"),
        ('[adapters]\npoet = "../poet.rkllm"', "inside the manifest's own folder"),
        ('[adapters]\nPoet = "weights.rkllm"', "line 3: `adapters.Poet`.*lower-case"),
        ('[adapters]\nlatest = "weights.rkllm"', "not `latest`"),
        ("[adapters]\npoet = 7", "must be a file, or a table"),
        ('[adapters]\npoet = { file = "weights.rkllm", size = 1 }', "must be a file, or a table"),
        ('[adapters]\npoet = { file = "weights.rkllm", scale = true }', "must be a file, or a table"),
        ('[adapters]\npoet = { file = "weights.rkllm", scale = 101 }', "within ±100"),
        ('[adapters]\npoet = { file = "weights.rkllm", scale = nan }', "within ±100"),
        ('abilities = ["embedding"]\n[adapters]\npoet = "weights.rkllm"', "line 3: `adapters` goes with text"),
    ],
)
def test_adapters_that_are_refused(folder: Path, text: str, words: str) -> None:
    """With the line to mend."""
    (folder / "weights.rkllm").write_bytes(b"")
    with pytest.raises(ModelRefused, match=words):
        read(folder, f'file = "weights.rkllm"\n{text}')


@pytest.mark.parametrize("engine", ["llamacpp", "echo"])
def test_an_engine_that_can_apply_no_adapter_says_so(folder: Path, engine: str) -> None:
    """Instead of answering as if there were none."""
    with pytest.raises(ModelRefused, match=f"the engine {engine} can apply"):
        read(folder, f'engine = "{engine}"\nfile = "weights.gguf"\n[adapters]\npoet = "chat.jinja"')


@pytest.mark.parametrize(
    ("line", "load", "pin"),
    [
        ("", "on-demand", False),
        ('load = "on-demand"', "on-demand", False),
        ('load = "preload"\npin = true', "preload", True),
        ('load = "manual"', "manual", False),
    ],
)
def test_a_model_says_when_it_is_loaded(folder: Path, line: str, load: str, pin: bool) -> None:
    """With the first request, unless it says otherwise."""
    (folder / "weights.rkllm").touch()
    model = read(folder, f'file = "weights.rkllm"\n{line}')
    assert (model.load, model.pin) == (load, pin)
