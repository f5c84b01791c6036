"""Stands in for `rkllm.api`: the documented calls with their arguments, refusing what the documents rule out.

Tests copy this file to where an interpreter finds it under that name, so it imports nothing of this project.
"""

import json
import os

CALLS: list = []
"""Every call: its name and arguments."""
TROUBLE: dict = {}
"""By the name of a call: what it answers or raises instead."""


def _trouble(name):
    trouble = TROUBLE.get(name)
    if isinstance(trouble, Exception):
        raise trouble
    return trouble


class Numbers:
    """As much of a tensor as perplexity needs."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, place):
        found = self.content[place]
        return Numbers(found) if isinstance(found, list) else found

    def float(self):
        return self

    def logsumexp(self, dimension):
        import math

        assert dimension == 0
        return math.log(sum(math.exp(value) for value in self.content))


class RKLLM:
    def __init__(self):
        self._loaded = self._built = self._adapted = False

    def load_huggingface(
        self, model, model_lora=None, device="cpu", dtype="float32", custom_config=None, load_weight=True
    ):
        CALLS.append(("load_huggingface", dict(locals())))
        if not os.path.isfile(os.path.join(model, "config.json")) or device not in ("cpu", "cuda"):
            return -1
        self._loaded, self._adapted = True, model_lora is not None
        return _trouble("load_huggingface") or 0

    def load_gguf(self, model):
        CALLS.append(("load_gguf", dict(locals())))
        self._loaded = os.path.isfile(model)
        return 0 if self._loaded else -1

    def build(
        self,
        do_quantization=True,
        optimization_level=1,
        quantized_dtype="w8a8",
        quantized_algorithm="normal",
        num_npu_core=3,
        extra_qparams=None,
        dataset=None,
        hybrid_rate=0,
        target_platform="rk3588",
        max_context=4096,
    ):
        arguments = dict(locals())
        arguments["pairs"] = None
        if dataset is not None:
            with open(dataset, encoding="utf-8") as file:
                arguments["pairs"] = json.load(file)
            if any(sorted(pair) != ["input", "target"] for pair in arguments["pairs"]):
                return -1
        CALLS.append(("build", arguments))
        if not self._loaded or _trouble("build"):
            return -1
        self._built = True
        return 0

    def export_rkllm(self, export_path, export_tokenizer=True, export_embedding=True):
        CALLS.append(("export_rkllm", dict(locals())))
        if not self._built:
            return -1
        if _trouble("export_rkllm") != "nothing":
            with open(export_path, "wb") as file:
                file.write(b"weights")
            if self._adapted:
                with open(export_path.replace(".rkllm", "_lora.rkllm"), "wb") as file:
                    file.write(b"adapter")
        return 0

    def update_rkllm(self, model):
        CALLS.append(("update_rkllm", dict(locals())))
        how = _trouble("update_rkllm") or "beside"
        if how == "beside":
            with open(model + ".new.rkllm", "wb") as file:
                file.write(b"updated")
        elif how == "in place":
            with open(model, "ab") as file:
                file.write(b"updated")
        return 0

    def get_logits(self, inputs):
        _trouble("get_logits")
        tokens = inputs["input_ids"].content[0]
        words = 16 if self._built else 8
        return Numbers([[[0.0] * words for _ in tokens]])

    def chat_model(self, message, args):
        CALLS.append(("chat_model", {"message": message, **args}))
        return _trouble("chat_model") or ("Paris, more or less." if self._built else "Paris.")
