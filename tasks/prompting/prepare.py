"""Requests made ready to run: rendered, tokenized, checked against the context, every sampling value settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, assert_never

import msgspec

from npu.answer_format import HIDDEN, thinking_format, tool_format
from npu.chat_template import ChatTemplate
from npu.engine import Ability, Prompt, Sampling, Tokenizer, Turn
from npu.errors import AdapterMissing, ContextTooLong, FieldRefused, PromptRefused
from npu.hidden_tokenizer import HiddenTokenizer
from npu.model import Model
from tasks.errors import AbilityMissing
from tasks.prompting import overflow
from tasks.prompting.conversation import Conversation, calls_tools
from tasks.prompting.filling import gap_of
from tasks.prompting.holding import constraint_of
from tasks.prompting.reading import Reading, closing_of, control_markers, offered, reading_of
from tasks.requests import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    GenerateRequest,
    Message,
    Request,
    RerankRequest,
    SamplingOptions,
    Tool,
    ability_of,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to run: choice `i * n + k` is the k-th answer to `prompts[i]`."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    stop: tuple[str, ...]
    n: int
    echoes: tuple[bytes, ...] | None = None
    """What each answer begins with, when the request asked for its prompt back."""
    reading: Reading | None = None
    """How the answers are to be read; None is as text."""
    left_out: int = 0
    """Tokens of the request that did not fit, and are no part of the prompts."""

    def sampling_of(self, choice: int) -> Sampling:
        """The sampling of one choice: with a seed, each answer to one prompt gets its own, or all would be alike."""
        if self.sampling.seed is None or self.n == 1:
            return self.sampling
        return replace(self.sampling, seed=(self.sampling.seed + choice % self.n) % 2**32)


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Texts ready to be embedded, as token ids. `dimensions` None means all there are."""

    inputs: tuple[Sequence[int], ...]
    dimensions: int | None


@dataclass(frozen=True, slots=True)
class PreparedQuestions:
    """Prompts ready to be answered with yes or no: `yes` and `no` are the tokens that begin these answers."""

    inputs: tuple[Sequence[int], ...]
    yes: int
    no: int


Ready: TypeAlias = Prepared | PreparedTexts | PreparedQuestions

GAP = "\ue000\ue001\ue000"
"""Stands for the beginning of an answer while its conversation is rendered: what follows it closes the turn."""

QUESTION = "Does the document answer the query? Say only yes or no."


class Preparer:
    """Prepares requests for one model. Usable from any thread."""

    def __init__(self, model: Model, tokenizer: Tokenizer, template: ChatTemplate | None, context_length: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._context_length = context_length
        self._sizes = overflow.Sizes(tokenizer)
        self._conversation = Conversation(template) if template is not None else None
        self._source = source = template.source if template is not None else ""
        self._calls = tool_format(model.tool_format, source) if template and calls_tools(model, template) else None
        if isinstance(tokenizer, HiddenTokenizer):
            source = HIDDEN
        self._thinking = thinking_format(model.thinking_format, source)

    def prepare(self, request: Request, prompts: Sequence[Sequence[int]] = ()) -> Ready:
        """The request, ready to run. Raises `PromptRefused` (`ContextTooLong` and `TemplateFailed` among it).

        `prompts` are the token ids of its prompts where they are known already; they are not made anew then.
        """
        if Ability(ability_of(request)) not in self._model.abilities:
            # The front has looked at the card, but its manifest may have changed since.
            raise PromptRefused(str(AbilityMissing(self._model.id, ability_of(request), sorted(self._model.abilities))))
        match request:
            case ChatRequest(template=str()):
                return self._with_template(request).prepare(msgspec.structs.replace(request, template=None), prompts)
            case ChatRequest() | CompletionRequest():
                return self._generation(request, prompts)
            case EmbedRequest():
                fits = request.overflow == "refuse"
                inputs = tuple(self._input(given, cut=not fits) for given in request.inputs)
                return PreparedTexts(inputs, request.dimensions)
            case RerankRequest():
                return self._questions(request)
            case _:
                assert_never(request)

    def _with_template(self, request: ChatRequest) -> Preparer:
        """One that goes by the request's own template."""
        if isinstance(self._tokenizer, HiddenTokenizer):
            raise self._tokenizer.refusal("be asked with a template of yours")
        template = replace(self._template or ChatTemplate(""), source=request.template or "")
        return Preparer(self._model, self._tokenizer, template, self._context_length)

    def _generation(self, request: GenerateRequest, known: Sequence[Sequence[int]]) -> Prepared:
        if request.adapter is not None and request.adapter not in (its.name for its in self._model.adapters):
            raise AdapterMissing(self._model.id, request.adapter)
        prompts: tuple[Prompt, ...]
        echoes: tuple[bytes, ...] | None = None
        reading: Reading | None = None
        left_out = 0
        match request:
            case ChatRequest() if isinstance(self._tokenizer, HiddenTokenizer):
                prompts = (self._turn(request, self._tokenizer),)
                reading = Reading(self._thinking) if self._thinking is not None else None
            case ChatRequest():
                tokens, left_out = self._chat_tokens(request, known)
                prompts = (self._prompt(tokens, request),)
                if self._thinking is not None or self._calls is not None:
                    reading = reading_of(
                        *(request, tokens, self._tokenizer, self._markers, self._closing, self._calls, self._thinking)
                    )
            case CompletionRequest():
                texts = [self._text_tokens(prompt, request) for prompt in request.prompts]
                left_out = sum(count for _, count in texts)
                prompts = tuple(self._prompt(ids, request) for ids in known or [ids for ids, _ in texts])
                if request.echo:
                    echoes = tuple(
                        prompt.encode() if isinstance(prompt, str) else self._tokenizer.decode(prompt)
                        for prompt in request.prompts
                    )
        return Prepared(
            prompts=prompts,
            sampling=self._model.sampling(
                **_given(request.sampling),
                constraint=constraint_of(request, reading, self._source),
                logprobs=request.logprobs,
            ),
            stop=tuple(dict.fromkeys((*request.stop, *self._model.stop))),
            n=request.n,
            echoes=echoes,
            reading=reading,
            left_out=left_out,
        )

    @cached_property
    def _markers(self) -> dict[int, bytes]:
        return control_markers(self._tokenizer, self._calls, self._thinking)

    @cached_property
    def _closing(self) -> tuple[tuple[int, bytes], ...]:
        return closing_of(self._tokenizer, self._thinking)

    def text_of(self, request: ChatRequest) -> str:
        """What the model reads of a chat, up to where its answer begins. Raises `PromptRefused`."""
        options, tools = request.template_options, offered(request)
        if tools and self._calls is None and self._template is not None:
            raise FieldRefused(
                "tools",
                f"the chat template of '{self._model.id}' knows none. Ask a model that lists `tools` among its capabilities, or "
                'teach this one a format: `tool_format = "json"` in its manifest.',
            )
        if request.thinking_budget == 0:
            options = {"enable_thinking": False, **options}
        if not request.continue_last:
            return self.render(request.messages, options, tools)
        *before, last = request.messages
        begun = msgspec.structs.replace(last, content=GAP)
        options = {**options, "add_generation_prompt": False}
        text, found, _ = self.render((*before, begun), options, tools).rpartition(GAP)
        if not found:
            raise PromptRefused(
                f"The chat template of '{self._model.id}' leaves out the beginning of an answer, so it cannot be gone on with. "
                "Let the last message be a user's."
            )
        return text + last.content

    def tokens_of(self, request: ChatRequest) -> list[int]:
        """The same as token ids, whether or not they fit into the context. Raises `PromptRefused`."""
        return self._encode_rendered(self.text_of(request))

    def _chat_tokens(self, request: ChatRequest, known: Sequence[Sequence[int]]) -> tuple[Sequence[int], int]:
        """The prompt of a chat, and how many tokens of it were left out."""
        if known and request.overflow == "refuse":
            return known[0], 0
        whole = self.tokens_of(request)
        if known:
            return known[0], max(0, len(whole) - len(known[0]))
        return overflow.fit(request, whole, self._context(request), self.tokens_of, self._sizes)

    def _text_tokens(self, prompt: str | tuple[int, ...], request: CompletionRequest) -> tuple[Sequence[int], int]:
        """A text's tokens, and how many of them were left out."""
        context = self._context(request)
        if not request.suffix:
            tokens = self._completion_tokens(prompt)
            if request.overflow == "refuse":
                return tokens, 0
            return overflow.end_of(tokens, context, request.max_tokens, self._tokenizer)
        gap = gap_of(self._model, self._tokenizer)
        # What a file has of such tokens is text, and ends no part of it.
        before = (
            self._tokenizer.encode(prompt, parse_special=False)
            if isinstance(prompt, str)
            else self._completion_tokens(prompt)
        )
        behind = self._tokenizer.encode(request.suffix, parse_special=False)
        left_out, room = 0, context - len(gap.around((), behind))
        if request.overflow == "truncate" and room > 0:
            before, left_out = overflow.end_of(before, room, request.max_tokens, self._tokenizer)
        return gap.around(before, behind), left_out

    def _context(self, request: GenerateRequest) -> int:
        return min(self._context_length, request.context_limit or self._context_length)

    def render(self, messages: Sequence[Message], template_options: dict[str, Any], tools: Sequence[Tool] = ()) -> str:
        """The text that the model's chat template makes of `messages` and `tools`. Raises `PromptRefused`."""
        if isinstance(self._tokenizer, HiddenTokenizer):
            raise self._tokenizer.refusal("be asked with a template of ours")
        if self._template is None or self._conversation is None:
            raise PromptRefused(
                f"The model '{self._model.id}' has no chat template: it is a base model, which continues text but was "
                "not taught to answer. Use /v1/completions, or a model whose name says instruct, it or chat."
            )
        reserved = template_options.keys() & {"messages", "tools", "self"}
        if reserved:
            raise PromptRefused(
                f"chat_template_kwargs may not hold '{min(reserved)}': it is set from the request itself."
            )
        if self._model.system and not any(message.role in ("system", "developer") for message in messages):
            messages = (Message("system", self._model.system), *messages)
        made = self._conversation.variables(messages, tools, self._calls)
        return self._template.render(**{**self._conversation.options(template_options), **made})

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """The ids of `text`; with `parse_special` control tokens in it are read as such. Raises `PromptRefused`."""
        return self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes that each of `tokens` adds to a text. Raises `PromptRefused` on an id outside the vocabulary."""
        return [self._tokenizer.decode((token,)) for token in tokens]

    def _encode_rendered(self, text: str) -> list[int]:
        # Most templates write the BOS token themselves; where one does not, the vocabulary decides.
        bos = self._template.bos_token if self._template is not None else None
        return self._tokenizer.encode(text, add_special=not (bos and text.startswith(bos)), parse_special=True)

    def _completion_tokens(self, prompt: str | tuple[int, ...]) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_special=True, parse_special=True)
        self._tokenizer.decode(prompt)  # refuses ids outside the vocabulary, before the engine sees them
        return prompt

    def _questions(self, request: RerankRequest) -> PreparedQuestions:
        yes, no = (self._tokenizer.encode(word)[0] for word in ("yes", "no"))
        if yes == no:
            raise PromptRefused(f"The vocabulary of '{self._model.id}' cannot tell yes from no by their first token.")
        inputs = []
        for document in request.documents:
            tokens = self._encode_rendered(self._question(request.query, document))
            if len(tokens) >= self._context_length:
                raise ContextTooLong(len(tokens), 1, self._context_length)
            inputs.append(tokens)
        return PreparedQuestions(tuple(inputs), yes, no)

    def _question(self, query: str, document: str) -> str:
        if self._model.rerank_template is not None:
            base = self._template or ChatTemplate("", bos_token="", eos_token="")
            template = replace(base, source=self._model.rerank_template)
            return template.render((), query=query, document=document)
        turns = (Message("system", QUESTION), Message("user", f"Query: {query}\n\nDocument: {document}"))
        return self.render(turns, {"enable_thinking": False})

    def _input(self, given: str | tuple[int, ...], *, cut: bool) -> Sequence[int]:
        tokens = self._completion_tokens(given)
        ending = len(self._tokenizer.ending) if isinstance(given, str) else 0
        if cut and len(tokens) + ending > self._context_length:
            tokens = tokens[: self._context_length - ending]
        if isinstance(given, str):
            tokens = [*tokens, *self._tokenizer.ending]
        if not tokens:
            raise PromptRefused("An input is empty: there is nothing to embed. Send at least one token.")
        if len(tokens) > self._context_length:
            raise ContextTooLong(len(tokens), None, self._context_length)
        return tokens

    def _turn(self, request: ChatRequest, hidden: HiddenTokenizer) -> Prompt:
        """For a runtime that puts one message of a user into a template of its own."""
        if offered(request):
            raise hidden.refusal("be given tools")
        if request.thinking_budget is not None:
            raise hidden.refusal("be held to a budget of thought")
        if self._model.system or [message.role for message in request.messages] != ["user"]:
            raise hidden.refusal("take a system message, or a conversation of several turns")
        options = {**self._model.template_options, **request.template_options}
        unknown = options.keys() - {
            "enable_thinking",
            "reasoning_effort",
        }  # of the latter, what templates do not care for
        if unknown:
            raise hidden.refusal(f"be told '{min(unknown)}', a variable of a chat template")
        turn = Turn(request.messages[0].content, thinking=options.get("enable_thinking", True) is not False)
        most = self._context(request)
        return Prompt(
            (), most if request.max_tokens is None else min(request.max_tokens, most), self._adapter(request), turn
        )

    def _adapter(self, request: GenerateRequest) -> str | None:
        return request.adapter or self._model.adapter

    def _prompt(self, tokens: Sequence[int], request: GenerateRequest) -> Prompt:
        max_tokens = request.max_tokens
        if not tokens:
            raise PromptRefused("The prompt is empty: there is nothing to continue. Send at least one token.")
        context = self._context(request)
        room = context - len(tokens)
        if room < 1:
            raise ContextTooLong(len(tokens), max_tokens, context)
        most = min(max_tokens, room) if max_tokens is not None else room
        return Prompt(tokens=tokens, max_tokens=most, adapter=self._adapter(request))


def _given(options: SamplingOptions) -> dict[str, Any]:
    return {name: value for name in options.__struct_fields__ if (value := getattr(options, name)) is not None}
