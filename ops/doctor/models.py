"""Checks of the models on disk: for this chip, from a converter that suits the runtime, and made for chats."""

from __future__ import annotations

from collections.abc import Iterator

from npu.hardware import soc_named
from npu.rkllm.pairs import find_trap
from ops.doctor.facts import Facts, ModelFacts
from ops.doctor.finding import Finding, Level
from ops.program import program


def check_files(facts: Facts) -> Iterator[Finding]:
    """Whether there are models, and each can be used."""
    for sentence in facts.complaints:
        yield Finding(Level.WARNING, "model_refused", sentence)
    if facts.models:
        count = len(facts.models)
        yield Finding(Level.OK, "models", f"{count} model{'s' * (count > 1)} in {facts.models_dir}.")
    else:
        yield Finding(
            Level.NOTE,
            "no_models",
            f"There is no model in {facts.models_dir}.",
            "Put a .gguf or .rkllm file there, or fetch the demo model.",
            f"{program()} models fetch-demo",
        )


def check_contexts(facts: Facts) -> Iterator[Finding]:
    """How long the models' contexts are here."""
    known = [f"{model.id} {model.context_length}" for model in facts.models if model.context_length is not None]
    if known:
        yield Finding(Level.OK, "contexts", f"Tokens of context: {', '.join(known)}.")


def check_use_of_npu(facts: Facts) -> Iterator[Finding]:
    """Whether an NPU that is ready has anything to do."""
    ready = facts.board.npu.node is not None and facts.board.npu.node.usable
    runtime = facts.library is not None and facts.library.found is not None and facts.library.found.version is not None
    if facts.board.soc is not None and ready and runtime and facts.models and not facts.npu_models:
        yield Finding(
            Level.NOTE,
            "npu_unused",
            "The NPU is ready, and no model here is made for it.",
            "GGUF models run on the CPU. The command lists the models for this chip that `models pull` knows.",
            f"{program()} models recommend",
        )


def check_chip_of_models(facts: Facts) -> Iterator[Finding]:
    """Whether each model for an NPU was made for this one."""
    soc = facts.board.soc
    if soc is None:
        if facts.npu_models and facts.simulated is None:
            yield Finding(
                Level.WARNING,
                "model_without_npu",
                f"{_names(facts.npu_models)}: made for an NPU, which this machine does not have.",
                "An .rkllm file runs on a Rockchip board only. A .gguf file of the same model runs here.",
            )
        return
    for model in facts.npu_models:
        made_for = _chip(model)
        if made_for not in (None, soc.name) and not (made_for == "rk3588" and soc.name == "rk3583"):
            yield Finding(
                Level.WARNING,
                "model_other_chip",
                f"{model.id} was made for the {str(made_for).upper()}, and this is an {soc.name.upper()}.",
                f"It will not load. Fetch or convert it for {soc.name}: `target_platform` of the converter.",
            )
            continue
        if model.dtype and not soc.runs(model.dtype):
            yield Finding(
                Level.WARNING,
                "model_dtype",
                f"{model.id} is {model.dtype}, which the NPU of the {soc.name.upper()} does not run.",
                f"Fetch or convert it in one of: {', '.join(soc.dtypes)}.",
            )
        if model.cores is not None and model.cores > soc.npu_cores:
            yield Finding(
                Level.WARNING,
                "model_cores",
                f"{model.id} was made for {model.cores} NPU cores, and the {soc.name.upper()} has {soc.npu_cores}.",
                "The number is fixed at conversion: `num_npu_core` of the converter.",
            )


def check_pairs(facts: Facts) -> Iterator[Finding]:
    """Whether a model's converter and the runtime are known not to work together."""
    runtime = facts.library.found.version if facts.library is not None and facts.library.found is not None else None
    for model in facts.npu_models:
        trap = find_trap(model.toolkit, runtime, model.path.stem if model.path is not None else model.id)
        if trap is not None:
            yield Finding(
                Level.WARNING,
                "model_pair",
                f"{model.id}, made by converter {model.toolkit}, {trap.what}.",
                f"{trap.mend} (Known from {trap.source}. The converter's version is the one the runtime told when it last "
                "loaded the model, else the one in the file's or folder's name.)",
            )


def check_self_tests(facts: Facts) -> Iterator[Finding]:
    """What came of trying a model out when it was last loaded on this machine."""
    for model in facts.npu_models:
        if model.doubt:
            yield Finding(
                Level.WARNING,
                "model_suspect",
                f"{model.id} answered no simple question when it was last loaded.",
                f"{model.doubt} Once mended, it is tried again when it is next loaded.",
            )
        elif model.tried_with:
            yield Finding(
                Level.NOTE,
                "self_test_old",
                f"{model.id} was tried out with the runtime {model.tried_with}, which is not the one of now.",
                "What that showed says nothing of it here. It is tried anew when it is next loaded.",
            )
        elif model.self_test is not None:
            yield Finding(Level.OK, "self_tests", f"{model.id}: {model.self_test.story()}")


def check_chat(facts: Facts) -> Iterator[Finding]:
    """Whether a model can chat."""
    for model in facts.models:
        if not model.tokenizer:
            yield Finding(
                Level.WARNING,
                "model_no_tokenizer",
                f"{model.id} has no tokenizer.json beside it: it answers single messages, and nothing else.",
                "The NPU's runtime renders and cuts its prompts then. Put the original model's tokenizer.json and "
                "tokenizer_config.json into its folder, for conversations, completions, exact counts and sampling by request.",
            )
        elif model.chat is False:
            beside = (
                " An .rkllm file has its template beside it: put the original model's tokenizer.json and "
                "tokenizer_config.json into its folder, unless that is a base model."
                if model.engine == "rkllm"
                else ""
            )
            yield Finding(
                Level.WARNING,
                "model_no_chat",
                f"{model.id} has no chat template: it continues text, and cannot chat.",
                "Base models have none, and would answer a chat with unrelated text. Use it for completions, or take the "
                f"variant called `instruct`, `it` or `chat`.{beside}",
            )


def _chip(model: ModelFacts) -> str | None:
    return soc_named(model.soc).name if model.soc else None


def _names(models: tuple[ModelFacts, ...]) -> str:
    return ", ".join(model.id for model in models)
