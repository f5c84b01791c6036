"""A library is known before it is called, and whatever is wrong with it is a sentence."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from npu.errors import ModelRefused, RuntimeRefused
from npu.rkllm import evidence
from npu.rkllm.abi import FAMILIES, Abi, v1_1, v1_2_0, v1_2_1, v1_2_1b1, v1_3_0
from npu.rkllm.library import ALIKE, Identity, identify
from tests.npu.rkllm.libraries import DEFAULTS, GARBAGE, announcing, compiled, defaults_of, library, source
from tests.npu.rkllm.tables import ABIS, CC, family_name

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")

CRASHING_PAIR = (v1_2_1, v1_3_0)
NOTHING = "__builtin_memset(&param, 0, sizeof param);"


def refusal(path: Path, declared: str | None = None, seconds: float = 60, **more: Path) -> str:
    """The sentence by which it is refused, checked to be one."""
    with pytest.raises(RuntimeRefused) as refused:
        identify(path, declared, seconds, **more)
    text = str(refused.value)
    assert isinstance(refused.value, ModelRefused)
    assert "Traceback" not in text and "\n" not in text and text.endswith(".")
    return text


def told(path: Path, declared: str | None = None, **more: Path) -> Identity:
    return identify(path, declared, 60, **more)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A library of each family, as its release would be."""
    return {family_name(abi): library(tmp_path_factory.mktemp("family"), abi) for abi in ABIS}


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_each_family_is_known_by_itself(abi: Abi, built: dict[str, Path]) -> None:
    """With no text in the file and nothing said; and it never came into this process."""
    path = built[family_name(abi)]
    identity = told(path)
    assert identity.family is (v1_2_1b1 if abi in ALIKE else abi)
    assert identity.version == ("1.3.0" if abi is v1_3_0 else None)
    assert identity.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {prototype.name for prototype in abi.PROTOTYPES} <= identity.exported
    assert any("default parameters lie where" in sentence for sentence in identity.how)
    assert any("Nothing tells whether" in sentence for sentence in identity.how) is (abi in ALIKE)
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
@pytest.mark.parametrize("declared", [abi.RUNTIMES[-1] for abi in ABIS])
def test_a_version_that_was_declared_must_be_possible(abi: Abi, declared: str, built: dict[str, Path]) -> None:
    """The wrong one would crash; the sentence has what mends it."""
    claimed = next(family for family in FAMILIES if declared in family.RUNTIMES)
    path = built[family_name(abi)]
    if claimed is abi or {claimed, abi} == set(ALIKE):
        identity = told(path, f" v{declared}")
        assert (identity.version, identity.family) == (declared, claimed)
    else:
        text = refusal(path, declared)
        assert f"ROCKCHIPLLAMA_RKLLM_VERSION says that it is {declared}" in text and str(path) in text
        assert abi.RUNTIMES[-1] in text and "Set ROCKCHIPLLAMA_RKLLM_VERSION" in text


def test_the_one_that_crashes_is_named(built: dict[str, Path]) -> None:
    """Functions are the same, so the parameters tell."""
    text = refusal(built["1.3.0"], "1.2.3")
    assert (
        "default parameters lie where those of 1.3.0 do" in text and "Set ROCKCHIPLLAMA_RKLLM_VERSION=1.3.0, or" in text
    )


@pytest.mark.parametrize("declared", ["1.0.2", "1.4.0", "newest"])
def test_a_version_nobody_knows_is_refused_before_the_file_is_read(declared: str, tmp_path: Path) -> None:
    """Even when there is no file."""
    text = refusal(tmp_path / "missing.so", declared)
    assert declared in text and "ROCKCHIPLLAMA_RKLLM_VERSION cannot be followed" in text


@pytest.mark.parametrize("abi", CRASHING_PAIR, ids=family_name)
def test_an_answer_nobody_knows_leaves_the_question_open(abi: Abi, tmp_path: Path) -> None:
    """These two export the same, and the wrong guess crashes: their owner has to say, and is believed."""
    path = library(tmp_path, abi, NOTHING)
    text = refusal(path)
    assert "any of 1.2.1 to 1.2.3 or 1.3.0" in text and "ROCKCHIPLLAMA_RKLLM_VERSION=VERSION" in text
    assert [told(path, version).family for version in ("1.2.2", "1.3.0")] == [v1_2_1, v1_3_0]


def test_defaults_in_both_places_tell_nothing(tmp_path: Path) -> None:
    """A stray byte must not turn one into the other."""
    both = NOTHING + "".join(
        f"((char *)&param)[{at}] = {value};" for at, value in ((93, 4), (100, 1), (65, 4), (72, 1))
    )
    assert "may be any of" in refusal(library(tmp_path, v1_2_1, both))


@pytest.mark.parametrize(
    "twist",
    ["((char *)&param)[65] = 4;", "((char *)&param)[72] = 1;", "param.temperature = 0.6f; param.top_p = 0.95f;"],
)
def test_half_a_match_is_none_and_other_sampling_defaults_do_not_matter(twist: str, tmp_path: Path) -> None:
    """Cores and slots have to be in their places together, and nothing else has to."""
    path = library(tmp_path, v1_2_1, NOTHING + defaults_of(v1_2_1).removeprefix(GARBAGE) + twist)
    assert told(path).family is v1_2_1


@pytest.mark.parametrize(
    ("abi", "texts", "version"),
    [
        (v1_2_1, announcing("1.2.3"), "1.2.3"),
        (v1_3_0, announcing("1.3.0"), "1.3.0"),
        (v1_2_1, announcing("", "EOS token: %d"), None),
        (v1_2_1, announcing("", "Image Start: %s"), None),
        (v1_3_0, announcing("", "EOS token[%d]: %d"), "1.3.0"),
    ],
)
def test_texts_in_the_file_decide_where_the_parameters_do_not(
    abi: Abi, texts: str, version: str | None, tmp_path: Path
) -> None:
    """The version beside its announcement, or formats only one side has."""
    identity = told(library(tmp_path, abi, NOTHING, extra=texts))
    assert (identity.family, identity.version) == (abi, version)


@pytest.mark.parametrize(
    "texts", [announcing("1.2.3", "EOS token[%d]"), announcing("", "EOS token[%d]", "Image Start:")]
)
def test_texts_that_contradict_each_other_decide_nothing(texts: str, tmp_path: Path) -> None:
    """Better asked than crashed."""
    assert "may be any of" in refusal(library(tmp_path, v1_3_0, NOTHING, extra=texts))


def test_texts_yield_to_the_parameters(tmp_path: Path) -> None:
    """What it does outweighs what it says."""
    identity = told(library(tmp_path, v1_2_1, extra=announcing("1.3.0", "EOS token[%d]")))
    assert (identity.family, identity.version) == (v1_2_1, None)
    assert any("1.3.0" in sentence for sentence in identity.how)


def test_a_beta_is_known_by_its_text(tmp_path: Path) -> None:
    """Nothing else tells it from 1.2.0."""
    identity = told(library(tmp_path, v1_2_1b1, extra=announcing("1.2.1b1")))
    assert (identity.family, identity.version) == (v1_2_1b1, "1.2.1b1")


def table(folder: Path, path: Path, version: str) -> Path:
    written = folder / "digests.toml"
    written.write_text(f'[sha256]\n"{hashlib.sha256(path.read_bytes()).hexdigest()}" = "{version}"\n')
    return written


def test_a_known_file_needs_no_guess(tmp_path: Path) -> None:
    """And contradicts whoever says otherwise."""
    path = library(tmp_path, v1_2_1, NOTHING)
    known = table(tmp_path, path, "1.2.2")
    identity = told(path, digests=known)
    assert (identity.version, identity.family) == ("1.2.2", v1_2_1)
    text = refusal(path, "1.3.0", digests=known)
    assert "known to be 1.2.2" in text and "VERSION=1.2.2" in text
    assert told(path, "1.2.1", digests=known).version == "1.2.1"


@pytest.mark.parametrize(("version", "words"), [("1.1.4", "Remove that line"), ("7.0", "which is none of")])
def test_a_wrong_line_in_the_table_is_a_sentence(version: str, words: str, tmp_path: Path) -> None:
    """It is named, with the table."""
    path = library(tmp_path, v1_3_0)
    known = table(tmp_path, path, version)
    text = refusal(path, digests=known)
    assert words in text and str(known) in text


def test_the_table_is_read_or_its_fault_told(tmp_path: Path) -> None:
    """The project's own is in order, none is no fault, a broken one is."""
    assert evidence.version_of_digest("0" * 64, evidence.DIGESTS) is None
    assert evidence.version_of_digest("0" * 64, tmp_path / "none.toml") is None
    (tmp_path / "broken.toml").write_text("[sha256")
    with pytest.raises(RuntimeRefused, match="cannot be read"):
        evidence.version_of_digest("0" * 64, tmp_path / "broken.toml")


@pytest.mark.parametrize(
    ("defaults", "extra", "words"),
    [
        ("*(volatile int *)8 = 1;", "", "crashed (Segmentation fault)"),
        ("__builtin_trap();", "", "crashed ("),
        (None, "__attribute__((constructor)) static void begin(void) { *(volatile int *)8 = 1; }", "crashed (Segm"),
        (None, "void _exit(int); __attribute__((constructor)) static void begin(void) { _exit(3); }", "(exit code 3)"),
        (
            None,
            "void nowhere(void); void more(void) { nowhere(); }\nvoid (*used)(void) = nowhere;",
            "could not be loaded",
        ),
    ],
    ids=["crash", "trap", "crash-at-load", "exit-at-load", "not-loadable"],
)
@pytest.mark.parametrize("declared", [None, "1.3.0"])
def test_what_goes_wrong_when_it_is_asked_stays_in_the_child(
    defaults: str | None, extra: str, words: str, declared: str | None, tmp_path: Path
) -> None:
    """Whoever declares it does not help: it would happen again at the first real call."""
    text = refusal(library(tmp_path, v1_3_0, defaults, extra=extra), declared)
    assert words in text and "Install it again" in text


def test_one_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """Nothing of it stays; its owner's word is enough to use it, for it may only be slow."""
    path = library(tmp_path, v1_3_0, 'for (;;) __asm__ volatile("");')
    assert "did not answer within 0.5 s" in refusal(path, seconds=0.5)
    identity = identify(path, "1.3.0", 0.5)
    assert identity.family is v1_3_0 and any("did not answer" in sentence for sentence in identity.how)
    assert processes_of(path) == []


def processes_of(path: Path) -> list[int]:
    """Every process that was started with this path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(path) in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue  # It ended meanwhile.
    return found


def test_one_whose_offspring_holds_on_is_given_up_too(tmp_path: Path) -> None:
    """A process of its own that keeps the answer's pipe open must not keep anybody waiting."""
    stray = (
        "int fork(void), setsid(void), pause(void); unsigned alarm(unsigned);"
        "__attribute__((constructor)) static void begin(void) { if (!fork()) { setsid(); alarm(300); pause(); } }"
    )
    path = library(tmp_path, v1_3_0, extra=stray)
    assert "did not answer" in refusal(path, seconds=3)
    (left,) = processes_of(path)  # It is still there, and was not waited for.
    os.kill(left, signal.SIGKILL)


def test_what_it_prints_is_no_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does it reach anybody's terminal."""
    chatter = (
        "int puts(const char *); long write(int, const void *, unsigned long);"
        '__attribute__((constructor)) static void begin(void) { puts("{}"); write(1, "{}", 2); write(2, "noise", 5); }'
    )
    assert told(library(tmp_path, v1_3_0, extra=chatter)).family is v1_3_0
    assert capfd.readouterr() == ("", "")


def test_it_sees_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys may be in there."""
    monkeypatch.setenv("ROCKCHIPLLAMA_API_KEYS", "secret")
    spy = "char *getenv(const char *);"
    look = 'if (getenv("ROCKCHIPLLAMA_API_KEYS")) __builtin_trap();'
    path = compiled(tmp_path, spy + source(v1_3_0, look + defaults_of(v1_3_0)))
    assert told(path).family is v1_3_0


def test_a_file_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it stays the same, whatever is declared; an exchanged one is another."""
    asked: list[Path] = []
    ask = evidence.ask_defaults
    monkeypatch.setattr(evidence, "ask_defaults", lambda path, seconds: asked.append(path) or ask(path, seconds))
    path = library(tmp_path, v1_2_1)
    told(path)
    told(path, "1.2.2")
    refusal(path, "1.3.0")
    assert asked == [path]
    library(tmp_path, v1_3_0)
    os.utime(path, ns=(1, 1))
    assert told(path).family is v1_3_0
    assert asked == [path, path]


def test_one_that_does_not_answer_is_asked_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every look, each of which would wait as long; nor never, for the machine may have been busy."""
    asked: list[Path] = []
    ask = evidence.ask_defaults
    monkeypatch.setattr(evidence, "ask_defaults", lambda path, seconds: asked.append(path) or ask(path, seconds))
    path = library(tmp_path, v1_3_0, 'for (;;) __asm__ volatile("");')
    for _ in range(2):
        assert identify(path, "1.3.0", 0.2).family is v1_3_0
        assert "did not answer" in refusal(path, seconds=0.2)
    assert asked == [path]
    monkeypatch.setattr(evidence, "SILENCE_KEPT", 0.0)
    identify(path, "1.3.0", 0.2)
    assert asked == [path, path]


def exporting(*names: str) -> str:
    return "\n".join(f"int {name}(void) {{ return 0; }}" for name in names)


OLDEST = ("rkllm_createDefaultParam", "rkllm_init", "rkllm_run", "rkllm_destroy")


@pytest.mark.parametrize(("names", "version"), [(OLDEST, "1.0.0"), ((*OLDEST, "rkllm_abort"), "1.0.2")])
def test_releases_before_1_1_are_told_what_to_install(names: tuple[str, ...], version: str, tmp_path: Path) -> None:
    """Their calls differ altogether."""
    text = refusal(compiled(tmp_path, exporting(*names)))
    assert f"{version} is too old" in text and "Install librkllmrt.so 1.3.0" in text


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
@pytest.mark.parametrize("name", ["rkllm_run", "rkllm_abort", "rkllm_load_lora"])
def test_a_function_that_is_missing_is_named(abi: Abi, name: str, tmp_path: Path) -> None:
    """Before anything is asked of it."""
    text = refusal(library(tmp_path, abi, without=name))
    assert f"it lacks {name}, which" in text and "1.3.0" in text


def test_another_library_is_told_so(tmp_path: Path) -> None:
    """The one for other networks is easily mistaken for it."""
    assert "another library" in refusal(compiled(tmp_path, exporting("rknn_init", "rknn_run")))
    assert "another library" in refusal(compiled(tmp_path, "int puts(const char *);", ("-nostdlib",)))


def test_parameters_of_another_family_than_the_functions(tmp_path: Path) -> None:
    """Two facts that exclude each other make it no release."""
    moved = "__builtin_memset(&param, 0, sizeof param);" + "".join(
        f"*(float *)((char *)&param + {at}) = {value}f;" for at, value in ((20, 0.9), (24, 0.8), (28, 1.1))
    )
    text = refusal(library(tmp_path, v1_2_0, moved))
    assert "no release this program knows" in text and "1.2.0 or 1.2.1b1" in text


def test_the_floats_alone_tell_1_1(tmp_path: Path) -> None:
    """It has neither cores nor slots to look for."""
    assert told(library(tmp_path, v1_1, DEFAULTS)).family is v1_1
