"""What the runtime prints is caught, read, and turned into advice. The lines are from users' reports."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from npu.errors import RuntimeRefused
from npu.rkllm.abi import Abi, v1_2_0, v1_2_1, v1_2_1b1, v1_3_0
from npu.rkllm.init_log import InitFacts, Output, capture_output, check_runtime, explain_failure, parse_init_log
from npu.rkllm.library import Identity
from tasks.settings import ROOT

GOOD = """\
I rkllm: rkllm-runtime version: 1.2.3, rknpu driver version: 0.9.8, platform: RK3588
I rkllm: loading rkllm model from ../qwen3_w8a8_rk3588.rkllm
I rkllm: rkllm-toolkit version: 1.2.2, max_context_limit: 4096, npu_core_num: 3, target_platform: RK3588, model_dtype: W8A8
I rkllm: Enabled cpus: [4, 5, 6, 7]
I rkllm: Enabled cpus num: 4
"""
BETA = """\
rkllm init start
I rkllm: rkllm-runtime version: 1.2.1b1, rknpu driver version: 0.9.8, platform: RK3588
I rkllm: rkllm-toolkit version: 1.2.1b1, max_context_limit: 4096, npu_core_num: 3, target_platform: RK3588
I rkllm: Enabled cpus: [4, 6]
I rkllm: Enabled cpus num: 2
E rkllm: The number of enabled CPUs must be greater than or equal to the number of NPU cores.
rkllm init failed
"""
OLD_DRIVER_NO_MEMORY = """\
W rkllm: Warning: Your rknpu driver version is too low, please upgrade to 0.9.7.

I rkllm: rkllm-runtime version: 1.1.4, rknpu driver version: 0.8.2, platform: RK3588

E RKNN: [04:40:30.107] failed to allocate handle, ret: -1, errno: 14, errstr: Bad address
E RKNN: [04:40:30.107] failed to malloc npu memory, size: 3087138816, flags: 0x2
E RKNN: [04:40:30.112] load model file error!
rknn_init fail! ret=-1
"""
OLDEST = """\
rkllm init start
rkllm-runtime version: 1.0.1, rknpu driver version: 0.8.2, platform: RK3588
Warning: Your rknpu driver version is too low, please upgrade to 0.9.6.
"""
BAD_MAGIC_CALLED_GOOD = """\
I rkllm: rkllm-runtime version: 1.1.2, rknpu driver version: 0.9.8, platform: RK3588

E RKNN: [08:48:14.826] invalid rknn llm model magic
E RKNN: [08:48:14.826] load model file error!
rknn_init fail! ret=-1
rkllm init success
"""


def test_everything_a_newer_runtime_tells_is_read() -> None:
    """The runtime's and the model's line."""
    assert parse_init_log(GOOD) == InitFacts(
        runtime="1.2.3",
        driver="0.9.8",
        platform="rk3588",
        toolkit="1.2.2",
        max_context_limit=4096,
        npu_cores=3,
        target_platform="rk3588",
        dtype="w8a8",
        cpus=(4, 5, 6, 7),
    )
    assert explain_failure(GOOD) is None


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", InitFacts()),
        ("noise\n\xff\0 more: 1.2.3\n", InitFacts()),
        ("rkllm-runtime version: 1.0.1\n\nQuery platform error!\n", InitFacts(runtime="1.0.1")),
        (
            (
                "I rkllm: rkllm-runtime version: 1.3.0, rknpu driver version: unknown, platform: unknown\n"
                "I rkllm: rkllm-toolkit version: unknown, max_context_limit: 16384, npu_core_num: 2, target_platform: RK3576\n"
            ),
            InitFacts(runtime="1.3.0", max_context_limit=16384, npu_cores=2, target_platform="rk3576"),
        ),
        (
            OLDEST,
            InitFacts(
                runtime="1.0.1",
                driver="0.8.2",
                platform="rk3588",
                warnings=("Your rknpu driver version is too low, please upgrade to 0.9.6.",),
            ),
        ),
        (
            BAD_MAGIC_CALLED_GOOD,
            InitFacts(
                runtime="1.1.2",
                driver="0.9.8",
                platform="rk3588",
                errors=("invalid rknn llm model magic", "load model file error!"),
            ),
        ),
    ],
    ids=["empty", "noise", "no-platform", "unknowns", "1.0", "magic"],
)
def test_what_is_missing_is_none(text: str, facts: InitFacts) -> None:
    """Older versions and broken systems tell less."""
    assert parse_init_log(text) == facts


def test_the_model_s_chip_is_not_taken_for_this_machine_s() -> None:
    """They are named alike."""
    facts = parse_init_log(GOOD.split("\n", 1)[1])
    assert (facts.platform, facts.target_platform) == (None, "rk3588")


def test_a_beta_tells_its_version_whole() -> None:
    """And no dtype, which came later."""
    facts = parse_init_log(BETA)
    assert (facts.runtime, facts.toolkit, facts.dtype, facts.cpus) == ("1.2.1b1", "1.2.1b1", None, (4, 6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BETA, ("cpus under [engine_options]",)),
        (OLD_DRIVER_NO_MEMORY, ("3088 MB", "memory_domain", "context_length", "older than 0.9.7")),
        ("E rkllm: failed to malloc npu memory, size: 900 MB, domain: 0", ("900 MB",)),
        (BAD_MAGIC_CALLED_GOOD, ("does not know this kind of model file", "convert the model again")),
        (": invalid magic characters '\ufffd\u0314'\n: error: failed to load model 'x.rkllm'", ("kind of model file",)),
        ("E rkllm: invalid rkllm model!", ("kind of model file",)),
        (
            "E rkllm: max_context[16384] must be less than the model's max_context_limit[4096]",
            ("16384", "context_length to 4096"),
        ),
        ("E rkllm: The n_batch must be between 1 and 100, but got 0", ("of another version", "RKLLM_VERSION")),
        (
            (
                "E RKNN: [06:57:06.857] failed to open rknpu module, need to insmod rknpu dirver!\n"
                "E RKNN: [06:57:06.957] Device is not available\nGet device properties failed\nrkllm init failed"
            ),
            ("could not be opened", "usermod -aG render", "--device /dev/dri"),
        ),
        ("rkllm-runtime version: 1.0.1\n\nQuery platform error!", ("systempaths=unconfined",)),
        ("E rkllm: Your platform is unknown", ("systempaths=unconfined",)),
        (
            (
                "E RKNN: [10:49:05.216] failed to convert handle(1020) to fd, ret: -1, errno: 24, errstr: Too many open files\n"
                "E RKNN: [10:49:05.216] failed to malloc npu memory, size: 80, flags: 0xa"
            ),
            ("open files", "ulimit -n 102400"),
        ),
        (
            "E rkllm: Mismatch between enabled CPUs mask and expected count. Please check the configuration.",
            ("does not have",),
        ),
        ("The model target_platform does not match!\nRKLLM init failed!", ("another chip",)),
        ("Error: iommu_context->weight_memory is NULL", ("could not be had", "memory_domain")),
        ("E RKNN: failed to open model\nmatmul(w8a8) run failed", ("old driver",)),
        ("E RKNN: [08:48:14.826] load model file error!", ("could not be read",)),
        (
            "W rkllm: Warning: Your rknpu driver version is too low, please upgrade to 0.9.8\nrkllm init failed",
            ("older than 0.9.8", "kernel"),
        ),
    ],
)
def test_a_known_failure_becomes_advice(text: str, words: tuple[str, ...]) -> None:
    """Sentences, of which the likeliest cause is the first."""
    said = explain_failure(text)
    assert said is not None and said.endswith(".") and "\n" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    "text",
    [
        "",
        OLDEST,
        "W rkllm: Chat template auto-parsing failed: please configure it via rkllm_set_chat_template",
        "E rkllm: something nobody has seen\nrkllm init failed",
    ],
)
def test_what_is_no_failure_or_not_known_is_not_explained(text: str) -> None:
    """A warning alone stops nothing, and nothing is invented."""
    assert explain_failure(text) is None


def called_as(abi: Abi, version: str | None) -> Identity:
    return Identity(Path("/opt/librkllmrt.so"), "", version, abi, (), frozenset())


def test_a_library_that_says_what_it_was_called_as_passes() -> None:
    """Also where only the family was known, where it says nothing, and where a beta differs in nothing used."""
    check_runtime(called_as(v1_2_1, "1.2.3"), InitFacts(runtime="1.2.3"))
    check_runtime(called_as(v1_2_1, None), InitFacts(runtime="1.2.2"))
    check_runtime(called_as(v1_3_0, "1.3.0"), InitFacts())
    check_runtime(called_as(v1_2_0, "1.2.0"), InitFacts(runtime="1.2.1b1"))
    check_runtime(called_as(v1_2_1b1, "1.2.1b1"), InitFacts(runtime="1.2.0"))


@pytest.mark.parametrize(
    ("identity", "says", "words"),
    [
        (called_as(v1_2_1, "1.2.3"), "1.3.0", "says that it is 1.3.0 but was called as 1.2.3"),
        (called_as(v1_2_1, None), "1.3.0", "Set ROCKCHIPLLAMA_RKLLM_VERSION=1.3.0."),
        (called_as(v1_3_0, "1.3.0"), "1.2.1", "Set ROCKCHIPLLAMA_RKLLM_VERSION=1.2.1."),
        (called_as(v1_2_0, "1.2.0"), "1.2.1", "was called as 1.2.0"),
        (called_as(v1_3_0, "1.3.0"), "1.3.1", "1.3.1 is newer than any this program knows"),
    ],
)
def test_a_library_that_says_otherwise_is_refused(identity: Identity, says: str, words: str) -> None:
    """With the setting that mends it."""
    with pytest.raises(RuntimeRefused) as refused:
        check_runtime(identity, InitFacts(runtime=says))
    assert words in str(refused.value) and "/opt/librkllmrt.so" in str(refused.value)


def test_what_c_prints_is_caught_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Both streams, in their order, what is still in C's buffer included; alarming lines loud, others quiet."""
    libc = ctypes.CDLL(None)
    with caplog.at_level(logging.DEBUG, "rockchipllama.rkllm"), capture_output() as output:
        libc.puts(GOOD.splitlines()[0].encode())
        libc.fflush(None)
        os.write(2, b"E rkllm: something broke\n")
        libc.puts(b"bytes that are no text: \xff")
    text = output.text()
    assert parse_init_log(text).runtime == "1.2.3"
    assert text.splitlines()[1:] == ["E rkllm: something broke", "bytes that are no text: \ufffd"]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, f"librkllmrt: {GOOD.splitlines()[0]}"),
        (logging.WARNING, "librkllmrt: E rkllm: something broke"),
        (logging.DEBUG, "librkllmrt: bytes that are no text: \ufffd"),
    ]


def test_it_is_caught_when_the_load_fails() -> None:
    """Then above all."""
    outputs: list[Output] = []

    def load() -> None:
        with capture_output() as output:
            outputs.append(output)
            os.write(1, b"last words\n")
            raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        load()
    assert outputs[0].text() == "last words\n"


ORDER = """
import ctypes, os
from npu.rkllm.init_log import capture_output
libc = ctypes.CDLL(None)
libc.puts(b"before")
before = sorted(os.listdir("/proc/self/fd"))
with capture_output() as output:
    libc.puts(b"inside")
    os.write(2, b"inside too\\n")
assert sorted(os.listdir("/proc/self/fd")) == before
libc.puts(b"after")
os.write(2, output.text().upper().encode())
"""


def test_what_is_printed_before_and_after_goes_where_it_went() -> None:
    """C keeps lines back when nobody watches; none of them may end up on the wrong side. No file stays open."""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # With it set, C's streams have no buffer.
    done = subprocess.run(
        [sys.executable, "-c", ORDER],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "before\nafter\n", done.stderr
    assert sorted(done.stderr.splitlines()) == ["INSIDE", "INSIDE TOO"]


def test_a_second_capture_waits_for_the_first() -> None:
    """Otherwise one would restore the other's file as the process's output."""
    inside, entered = threading.Event(), threading.Event()
    texts: list[str] = []

    def capture_again() -> None:
        inside.wait(60)
        with capture_output() as output:
            entered.set()
            os.write(1, b"second\n")
        texts.append(output.text())

    thread = threading.Thread(target=capture_again)
    thread.start()
    with capture_output() as output:
        inside.set()
        assert not entered.wait(0.3)
        os.write(1, b"first\n")
    thread.join(60)
    assert (output.text(), texts) == ("first\n", ["second\n"])
