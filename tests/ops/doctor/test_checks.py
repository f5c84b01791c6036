"""Each thing that can be wrong with a machine is found, and nothing else with it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu.engines import Setup
from npu.hardware import OpenFiles, read_board
from npu.self_test import SelfTest, Verdict
from ops.doctor.facts import Disk, Facts, Library, LibraryFacts, ModelFacts, Python, Redis
from ops.doctor.finding import Level
from ops.doctor.library import look_for_library
from ops.doctor.report import examine
from tests.npu.boards import KINDS, as_nobody, make_board, put, put_in_container
from tests.ops.doctor.cases import QWEN, bad, levels, on_pc, sound

NOTE, WARNING, PROBLEM = Level.NOTE, Level.WARNING, Level.PROBLEM


def without_npu_models(facts: Facts) -> Facts:
    return replace(facts, models=(ModelFacts("smollm2", "llamacpp", Path("/models/smollm2.gguf")),))


def with_model(facts: Facts, **changes: Any) -> Facts:
    return replace(facts, models=(replace(facts.models[0], **changes),))


@pytest.mark.parametrize("chip", KINDS)
def test_nothing_is_wrong_with_a_sound_board(tmp_path: Path, chip: str) -> None:
    assert bad(sound(tmp_path, chip)) == {}


def test_a_pc_needs_no_npu(tmp_path: Path) -> None:
    """It says so in plain words, and asks for neither driver nor runtime nor file limits."""
    facts = on_pc(tmp_path)
    facts = replace(facts, board=replace(facts.board, open_files=OpenFiles(256, 256)))
    assert levels(facts) == {"no_npu": NOTE}
    assert "GGUF" in bad(facts)["no_npu"].explanation and "simulator" in bad(facts)["no_npu"].explanation


def test_a_model_for_an_npu_on_a_pc(tmp_path: Path) -> None:
    """Is a pity, and no problem of the machine."""
    assert levels(replace(on_pc(tmp_path), models=(QWEN,))) == {"no_npu": NOTE, "model_without_npu": WARNING}


def test_a_rockchip_without_such_an_npu(tmp_path: Path) -> None:
    put(tmp_path / "other", "proc/device-tree/compatible", "pine64,rockpro64\0rockchip,rk3399\0")
    facts = replace(on_pc(tmp_path), board=read_board(tmp_path / "other"))
    assert levels(facts) == {"chip_unknown": NOTE}
    assert "rk3399" in bad(facts)["chip_unknown"].title


def test_a_chip_that_is_hidden_altogether(tmp_path: Path) -> None:
    root = tmp_path / "hidden"
    (root / "proc").mkdir(parents=True)
    (root / "proc/device-tree").symlink_to("../sys/firmware/devicetree/base")
    assert levels(replace(on_pc(tmp_path), board=read_board(root))) == {"chip_hidden": WARNING}


def test_a_container_without_flags(tmp_path: Path) -> None:
    """The runtime would find neither chip nor node; both are mended by the same flags."""
    facts = sound(tmp_path)
    put_in_container(tmp_path)
    facts = replace(facts, board=read_board(tmp_path))
    assert levels(facts) == {"device_tree_hidden": PROBLEM, "node_missing": PROBLEM}
    for finding in bad(facts).values():
        assert "--device /dev/dri --security-opt systempaths=unconfined" in finding.command
    assert set(levels(without_npu_models(facts)).values()) == {WARNING}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.9.8", None),
        ("0.10.0", None),
        ("1.0.0", None),
        ("0.9.7", WARNING),
        ("0.9.6", PROBLEM),
        ("0.8.2", PROBLEM),
    ],
)
def test_the_drivers_version(tmp_path: Path, version: str, expected: Level | None) -> None:
    """Compared number by number; 0.9.7 still runs, below that the runtime itself complains."""
    facts = sound(tmp_path, driver=version)
    assert levels(facts) == ({"driver_old": expected} if expected else {})
    if expected:
        assert version in bad(facts)["driver_old"].title
        assert levels(without_npu_models(facts))["driver_old"] is WARNING


def test_a_driver_that_does_not_tell_its_version(tmp_path: Path) -> None:
    facts = sound(tmp_path)
    (tmp_path / "sys/module/rknpu/version").unlink()
    (tmp_path / "sys/kernel/debug/rknpu/version").unlink()
    facts = replace(facts, board=read_board(tmp_path))
    assert levels(facts) == {"driver_version_unknown": NOTE}
    assert bad(facts)["driver_version_unknown"].command == "sudo cat /sys/kernel/debug/rknpu/version"


@pytest.mark.parametrize(("mainline", "code"), [(False, "driver_missing"), (True, "driver_mainline")])
def test_a_kernel_without_the_driver(tmp_path: Path, mainline: bool, code: str) -> None:
    """Nobody is told to join a group for a node that no driver makes."""
    put(tmp_path / "board", "proc/device-tree/compatible", "radxa,rock-5b\0rockchip,rk3588\0")
    if mainline:
        (tmp_path / "board/sys/module/rocket").mkdir(parents=True)
    facts = replace(sound(tmp_path), board=read_board(tmp_path / "board"))
    assert levels(facts) == {code: PROBLEM}
    assert levels(without_npu_models(facts)) == {code: WARNING}


def test_a_driver_that_made_no_node(tmp_path: Path) -> None:
    """Outside a container no flag would help."""
    facts = sound(tmp_path, "rk3562")
    (tmp_path / "dev/rknpu").unlink()
    facts = replace(facts, board=read_board(tmp_path))
    assert levels(facts) == {"node_missing": PROBLEM}
    assert "dmesg" in bad(facts)["node_missing"].command


@pytest.mark.parametrize("chip", ["rk3588", "rk3562"])
def test_a_node_closed_to_this_user(tmp_path: Path, chip: str) -> None:
    """Both kinds of nodes; the groups are named."""
    facts = sound(tmp_path, chip)
    npu = facts.board.npu
    assert npu.node is not None
    facts = replace(facts, board=replace(facts.board, npu=replace(npu, node=replace(npu.node, usable=False))))
    assert levels(facts) == {"node_closed": PROBLEM}
    assert npu.node.path in bad(facts)["node_closed"].title
    assert bad(facts)["node_closed"].command == 'sudo usermod -aG render,video "$USER"'
    assert ("--group-add" in bad(facts)["node_closed"].explanation) == (chip == "rk3588")


def test_a_runtime_that_was_not_found(tmp_path: Path) -> None:
    """The sentence of the search is handed on; where nobody searched, nothing is said."""
    facts = replace(sound(tmp_path), library=Library(None, "It was looked for in /a and /b."))
    assert levels(facts) == {"library_missing": PROBLEM}
    assert bad(facts)["library_missing"].explanation == "It was looked for in /a and /b."
    assert levels(without_npu_models(facts)) == {"library_missing": WARNING}
    assert bad(replace(facts, library=None)) == {}


def test_a_runtime_of_unknown_version_or_with_a_gap(tmp_path: Path) -> None:
    """Each is told."""
    library = LibraryFacts(Path("/opt/librkllmrt.so"), None, "It has the calls of none we know.", ("libomp.so",))
    facts = replace(sound(tmp_path), library=Library(library))
    assert levels(facts) == {"library_unknown": PROBLEM, "library_needs": PROBLEM}
    assert "none we know" in bad(facts)["library_unknown"].explanation
    assert "/opt" in bad(facts)["library_needs"].explanation


def test_the_simulator_stands_in_for_npu_and_runtime(tmp_path: Path) -> None:
    """Which one is told; a model for the NPU is no trouble then. On a board it is worth a note."""
    simulated = Library(None, set_to="simulator-1.2.3", simulated="1.2.3")
    facts = replace(on_pc(tmp_path / "pc"), models=(QWEN,), library=simulated)
    assert levels(facts) == {"no_npu": NOTE}
    (told,) = (finding for finding in examine(facts) if finding.code == "library_simulated")
    assert "1.2.3" in told.title
    assert levels(replace(sound(tmp_path / "board"), library=simulated)) == {"library_simulated": NOTE}


@pytest.mark.parametrize("named", ["/nope", "simulator-9", "simulator9"])
def test_a_library_that_is_set_and_cannot_be_used(tmp_path: Path, named: str) -> None:
    """A problem wherever it is set, since nothing starts with it."""
    library = look_for_library(Setup(tmp_path, rkllm_library=named))
    facts = replace(on_pc(tmp_path), library=library)
    assert levels(facts) == {"no_npu": NOTE, "library_setting": PROBLEM}
    assert named in bad(facts)["library_setting"].title
    assert look_for_library(Setup(tmp_path, rkllm_library="simulator-1.2.0")).simulated == "1.2.0"


def test_governors(tmp_path: Path) -> None:
    """`performance` and the vendor's `userspace` hold a clock up; the others are named, and it is only a note."""
    make_board(tmp_path / "slow", "rk3588", governor="ondemand")
    put(tmp_path / "slow", "sys/class/devfreq/dmc/governor", "userspace")
    put(tmp_path / "slow", "sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors", "ondemand")
    facts = replace(sound(tmp_path / "fast"), board=read_board(tmp_path / "slow"))
    assert levels(facts) == {"clocks_vary": NOTE}
    assert "policy4 (ondemand), policy6 (ondemand), fdab0000.npu (ondemand)." in bad(facts)["clocks_vary"].explanation
    assert bad(facts)["clocks_vary"].command == "sudo ops/board/performance-mode on"


def test_heat(tmp_path: Path) -> None:
    """Of the hottest sensor."""
    facts = sound(tmp_path)
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "84600")
    facts = replace(facts, board=read_board(tmp_path))
    assert levels(facts) == {"hot": WARNING}
    assert bad(facts)["hot"].title == "The machine is hot: npu-thermal tells 85 °C."


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(1024, 102_400, None), (1024, 65_536, NOTE), (1024, 1024, WARNING)]
)
def test_open_files(tmp_path: Path, soft: int, hard: int, expected: Level | None) -> None:
    """Only the hard limit counts, because a worker raises its soft one by itself."""
    facts = sound(tmp_path)
    facts = replace(facts, board=replace(facts.board, open_files=OpenFiles(soft, hard)))
    assert levels(facts) == ({"open_files_few": expected} if expected else {})


def test_memory(tmp_path: Path) -> None:
    """Of 16.4 GB, 8.2 are free: what could never fit, and what does not fit now."""
    facts = sound(tmp_path)
    assert levels(with_model(facts, memory_bytes=9_000_000_000)) == {"memory_short": NOTE}
    assert levels(with_model(facts, memory_bytes=17_000_000_000)) == {"memory_too_small": WARNING}
    assert levels(with_model(facts, memory_bytes=None, size_bytes=17_000_000_000)) == {"memory_too_small": WARNING}
    assert "qwen3-0.6b (17.0 GB)" in bad(with_model(facts, memory_bytes=17_000_000_000))["memory_too_small"].title
    assert bad(with_model(facts, memory_bytes=8_000_000_000)) == {}
    told = {finding.code: finding.title for finding in examine(with_model(facts, memory_bytes=8_000_000_000))}
    assert told["memory"] == "8.2 GB of 16.4 GB of memory are free, enough for each of the models alone."
    unknown = {finding.code: finding.title for finding in examine(facts)}
    assert "contexts" not in unknown
    known = {finding.code: finding.title for finding in examine(with_model(facts, context_length=4096))}
    assert known["contexts"] == "Tokens of context: qwen3-0.6b 4096."
    assert unknown["memory"] == "8.2 GB of 16.4 GB of memory are free."


@pytest.mark.parametrize(
    ("chip", "made_for", "dtype", "cores", "expected"),
    [
        ("rk3588", "rk3588s", "w8a8", 3, set()),
        ("rk3588", None, "", None, set()),
        ("rk3588", "rk3576", "w4a16", 2, {"model_other_chip"}),
        ("rk3588", None, "w4a16", None, {"model_dtype"}),
        ("rk3588", "rk3588", "fp16", None, set()),
        ("rk3576", "rk3576", "w8a8_g128", None, {"model_dtype"}),
        ("rk3576", None, "w4a16_g128", 3, {"model_cores"}),
        ("rk3562", "rk3562", "w4a16", 2, {"model_dtype", "model_cores"}),
    ],
)
def test_a_model_for_another_chip(
    tmp_path: Path, chip: str, made_for: str | None, dtype: str, cores: int | None, expected: set[str]
) -> None:
    """By the chip it names, its quantization, and its number of NPU cores."""
    facts = with_model(sound(tmp_path, chip), soc=made_for, dtype=dtype, cores=cores)
    assert levels(facts) == dict.fromkeys(expected, WARNING)


def test_the_smaller_chip_runs_models_of_the_larger(tmp_path: Path) -> None:
    """As long as its cores suffice."""
    facts = sound(tmp_path)
    facts = replace(facts, board=read_board(tmp_path, "rk3583"))
    assert bad(with_model(facts, cores=2)) == {}
    assert set(bad(with_model(facts, cores=3))) == {"model_cores"}


@pytest.mark.parametrize(
    ("toolkit", "runtime", "name", "said"),
    [
        ("1.2.2", "1.3.0", "qwen3-0.6b", "does not stop"),
        ("1.2.3", "1.3.0", "qwen3-0.6b", None),
        ("1.2.2", "1.2.3", "qwen3-0.6b", None),
        ("1.2.3", "1.2.3", "DeepSeek-R1-Distill-Qwen-1.5B", "[PAD…]"),
        ("1.2.3", None, "DeepSeek-R1-Distill-Qwen-1.5B", "[PAD…]"),
        ("1.2.2", "1.2.3", "DeepSeek-R1-Distill-Qwen-1.5B", None),
        ("1.0.1", "1.2.0", "qwen2", "invalid rknn llm model magic"),
        ("1.2.3", "1.1.4", "qwen3-0.6b", "newer than the runtime"),
        ("1.2.1b1", "1.2.1", "qwen3-0.6b", None),
        ("1.1.4", "1.3.0", "qwen2", None),
        (None, "1.3.0", "qwen3-0.6b", None),
        ("1.2.2", None, "qwen3-0.6b", None),
    ],
)
def test_converters_and_runtimes(
    tmp_path: Path, toolkit: str | None, runtime: str | None, name: str, said: str | None
) -> None:
    """Known pairs are told with where they are known from; an unknown version accuses nobody."""
    library = Library(LibraryFacts(Path("/usr/lib/librkllmrt.so"), runtime)) if runtime else None
    facts = replace(with_model(sound(tmp_path), toolkit=toolkit, path=Path(f"/models/{name}.rkllm")), library=library)
    found = bad(facts)
    assert set(found) == ({"model_pair"} if said else set())
    if said:
        assert said in found["model_pair"].title and "Known from" in found["model_pair"].explanation


def test_what_a_self_test_showed(tmp_path: Path) -> None:
    """Suspect text is a warning with its causes; else it is told and nothing is wrong."""
    bad_test, good_test = SelfTest(text=Verdict.SUSPECT, said="x"), SelfTest(text=Verdict.SANE, reuse=True)
    facts = with_model(sound(tmp_path), self_test=bad_test, doubt="Its text is suspect: it said 'x'.")
    assert levels(facts) == {"model_suspect": WARNING}
    assert "it said 'x'" in bad(facts)["model_suspect"].explanation
    facts = with_model(facts, self_test=good_test, doubt="")
    assert bad(facts) == {}
    assert any(finding.title.endswith(good_test.story()) for finding in examine(facts))
    facts = with_model(facts, self_test=None, tried_with="1.2.3")
    assert "the runtime 1.2.3, which is not the one of now" in bad(facts)["self_test_old"].title


def test_a_base_model(tmp_path: Path) -> None:
    """Without a template there is no chat; with an .rkllm it may only have been forgotten."""
    facts = with_model(sound(tmp_path), chat=False)
    assert levels(facts) == {"model_no_chat": WARNING}
    assert "tokenizer_config.json" in bad(facts)["model_no_chat"].explanation
    assert "tokenizer" not in bad(with_model(facts, engine="llamacpp"))["model_no_chat"].explanation


def test_a_model_without_its_tokenizer(tmp_path: Path) -> None:
    """It can chat, a little, though no template of ours is there."""
    facts = with_model(sound(tmp_path), tokenizer=False, chat=False)
    assert levels(facts) == {"model_no_tokenizer": WARNING}
    assert "tokenizer.json" in bad(facts)["model_no_tokenizer"].explanation


def test_an_npu_that_has_nothing_to_do(tmp_path: Path) -> None:
    """Is told once it is ready; before that there is something else to do first."""
    idle = without_npu_models(sound(tmp_path))
    assert levels(idle) == {"npu_unused": NOTE}
    assert "npu_unused" not in levels(replace(idle, library=Library(None, "It was looked for everywhere.")))


def test_files_among_the_models(tmp_path: Path) -> None:
    """What the catalogue says is handed on; that there is none is said, too."""
    facts = replace(sound(tmp_path), complaints=("a.gguf is cut short.",))
    assert bad(facts)["model_refused"].title == "a.gguf is cut short."
    assert levels(replace(facts, models=(), complaints=())) == {"no_models": NOTE}


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        (Python((3, 11), private=True, bits=32, libc="glibc"), {"python_32_bit": WARNING}),
        (Python((3, 12), private=True, bits=64, libc=""), {"python_libc": WARNING}),
        (Python((3, 13), private=False, bits=64, libc="glibc"), {"python_shared": NOTE}),
    ],
)
def test_python(tmp_path: Path, python: Python, expected: dict[str, Level]) -> None:
    assert levels(replace(sound(tmp_path), python=python)) == expected


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (Disk(Path("/data"), 5_000_000_000, writable=False), {"disk_closed": PROBLEM}),
        (Disk(Path("/data"), 500_000_000, writable=True), {"disk_full": WARNING}),
        (Disk(Path("/data"), 5_000_000, writable=True), {"disk_full": PROBLEM}),
        (Disk(Path("/data"), None, writable=True), {}),
    ],
)
def test_disk(tmp_path: Path, disk: Disk, expected: dict[str, Level]) -> None:
    assert levels(replace(sound(tmp_path), disk=disk)) == expected


def test_redis_and_settings(tmp_path: Path) -> None:
    facts = sound(tmp_path)
    assert bad(replace(facts, redis=Redis("redis://h:6379", ""))) == {}
    assert levels(replace(facts, redis=Redis("redis://h:6379", "refused"))) == {"redis_away": PROBLEM}
    assert levels(replace(facts, unknown_settings=("x is no setting.",))) == {"setting_unknown": WARNING}
    assert levels(replace(facts, dangling=("The alias x means nothing here.",))) == {"name_dangling": WARNING}


def test_a_closed_node_seen_by_a_user_without_rights() -> None:
    """The whole way from the kernel's file to the finding."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        facts = sound(root)
        root.chmod(0o755)
        (root / "dev/dri/renderD129").chmod(0)
        assert as_nobody(lambda: ",".join(bad(replace(facts, board=read_board(root))))) == "node_closed"
