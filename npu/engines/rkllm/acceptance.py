"""What a model is asked when its library is tried out: prompts of ours, in the model's own template and vocabulary."""

from __future__ import annotations

from npu.chat_template import ChatTemplate
from npu.engines import Setup, option
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.facts import weights_of
from npu.engines.rkllm.library import library_of
from npu.engines.rkllm.load import helping_cores, memory_domain, tokenizer_of
from npu.errors import PromptRefused
from npu.model import Model
from npu.rkllm.acceptance import Material
from npu.template_search import find_template
from npu.tokenizer_file import FileTokenizer

SHORT = "What is 2 + 2? Answer with the number alone."
LONG = "Tell a story about a lighthouse keeper and the sea, in at least two hundred words."
REMEMBER = "Remember this: the word is papaya. Say that you will."
RECALL = "What was the word that I told you to remember?"
CHARACTER = "Repeat these signs and say nothing else: 😀 😃 🎉 世界你好"
TEXT = (
    "The keeper climbed the stairs each evening and counted the steps, for there was little else to count. "
    "On the third landing a window looked out to the west, where the ships went by with their lamps lit. "
)


def material_of(model: Model, setup: Setup) -> Material:
    """For the library that `setup` finds. Raises `ModelRefused` when there is none, or the model's files are damaged."""
    identity = library_of(setup)
    weights, length = weights_of(model), RkllmEngine.describe(model, setup).context_length
    tokenizer, template = tokenizer_of(model), find_template(model, None)
    unit = tokenizer.encode(TEXT)
    return Material(
        library=str(identity.path),
        runtime=identity.version or identity.family.RUNTIMES[0],
        weights=str(weights),
        context_length=length,
        memory_domain=memory_domain(model, setup),
        embed_flash=bool(option(model, RkllmEngine.OPTIONS, "embed_flash")),
        cpus=helping_cores(model),
        adapter=str(model.adapters[0].path) if model.adapters else None,
        end_tokens=tuple(sorted(tokenizer.end_tokens)),
        short=_asked(SHORT, tokenizer, template),
        long=_asked(LONG, tokenizer, template),
        remember=_asked(REMEMBER, tokenizer, template),
        recall=_asked(RECALL, tokenizer, template),
        character=_asked(CHARACTER, tokenizer, template),
        text=tuple((unit * (length // len(unit) + 1))[:length]),
    )


def _asked(text: str, tokenizer: FileTokenizer, template: ChatTemplate | None) -> tuple[int, ...]:
    if template is not None:
        try:
            prompt = template.render([{"role": "user", "content": text}], enable_thinking=False)
        except PromptRefused:
            pass  # It wants more than a question; then the question alone will do.
        else:
            bos = template.bos_token
            return tuple(tokenizer.encode(prompt, add_special=not (bos and prompt.startswith(bos))))
    return tuple(tokenizer.encode(text, add_special=True))
