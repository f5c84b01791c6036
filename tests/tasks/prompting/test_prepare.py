"""Requests made ready to run: rendered, tokenized, checked, every value settled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu import constraint
from npu.chat_template import ChatTemplate
from npu.engine import Ability, Prompt, Sampling, Turn
from npu.engines.echo import BOS, EOS, TEMPLATE, EchoTokenizer
from npu.errors import AdapterMissing, ContextTooLong, PromptRefused, TemplateFailed
from npu.hidden_tokenizer import HiddenTokenizer
from npu.model import SAMPLING_DEFAULTS, LoraAdapter, Model
from tasks.prompting.prepare import QUESTION, Prepared, PreparedQuestions, PreparedTexts, Preparer, Ready
from tasks.requests import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Grammar,
    JsonObject,
    JsonSchema,
    Message,
    OutputFormat,
    Regex,
    RerankRequest,
    SamplingOptions,
)

MODEL = Model(id="m", engine="echo", folder=Path("/nowhere"))
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
WITH_BOS = "{{ bos_token }}" + PLAIN


class Tokenizer(EchoTokenizer):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.encoded: list[tuple[str, bool, bool]] = []

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        self.encoded.append((text, add_special, parse_special))
        return super().encode(text, add_special=add_special, parse_special=parse_special)


def template(source: str, bos: str = "<|bos|>", **options: Any) -> ChatTemplate:
    return ChatTemplate(source, bos_token=bos, eos_token="<|eos|>", options=options)


def preparer(
    source: str | None = PLAIN, *, context_length: int = 100, model: Model = MODEL, bos: str = "<|bos|>"
) -> Preparer:
    return Preparer(model, EchoTokenizer(), None if source is None else template(source, bos), context_length)


def chat(*contents: str, **rest: Any) -> ChatRequest:
    return ChatRequest(messages=tuple(Message("user", content) for content in contents), **rest)


def only(prompts: Sequence[Prompt]) -> Prompt:
    [prompt] = prompts
    return prompt


def test_a_chat_is_rendered_and_tokenized() -> None:
    """By the model's own template, with control tokens read as such."""
    prepared = preparer(TEMPLATE).prepare(
        ChatRequest(messages=(Message("system", "be"), Message("user", "hi"), Message("assistant", "ho")))
    )
    expected = EchoTokenizer().encode("<|system|>be<|end|><|user|>hi<|end|><|assistant|>ho<|end|><|assistant|>")
    assert list(only(prepared.prompts).tokens) == [BOS, *expected]
    assert (prepared.n, prepared.echoes) == (1, None)


@pytest.mark.parametrize("source", [PLAIN, WITH_BOS], ids=["vocabulary", "template"])
def test_bos_stands_first_and_once(source: str) -> None:
    """Whether the template writes it or the vocabulary wants it."""
    tokens = only(preparer(source).prepare(chat("hi")).prompts).tokens
    assert list(tokens) == [BOS, *b"hi"]


def test_bos_is_left_to_the_vocabulary_where_the_model_names_none() -> None:
    """Every text begins with the empty one, which is no BOS."""
    assert next(iter(only(preparer(PLAIN, bos="").prepare(chat("hi")).prompts).tokens)) == BOS


def test_a_client_that_writes_bos_itself_does_not_lose_the_vocabularys() -> None:
    """Only what the text begins with counts: elsewhere it is the client's own."""
    tokens = only(preparer(PLAIN).prepare(chat("a<|bos|>b")).prompts).tokens
    assert list(tokens) == [BOS, ord("a"), BOS, ord("b")]


@pytest.mark.parametrize(
    ("max_tokens", "settled"), [(None, 60), (1, 1), (59, 59), (60, 60), (61, 60), (10**9, 60)], ids=str
)
def test_max_tokens_is_what_was_asked_for_but_never_past_the_context(max_tokens: int | None, settled: int) -> None:
    """Not given, the whole rest of the context is the answer's."""
    prompt = only(preparer(context_length=100).prepare(chat("x" * 39, max_tokens=max_tokens)).prompts)
    assert (len(prompt.tokens), prompt.max_tokens) == (40, settled)


def test_a_prompt_that_leaves_one_token_of_room_fits() -> None:
    """The last that does."""
    assert only(preparer(context_length=100).prepare(chat("x" * 98)).prompts).max_tokens == 1


@pytest.mark.parametrize("length", [99, 100, 5000])
def test_a_prompt_without_room_for_one_token_is_refused_with_the_figures(length: int) -> None:
    """Counted by the model's own tokenizer, BOS included."""
    with pytest.raises(ContextTooLong) as refused:
        preparer(context_length=100).prepare(chat("x" * length, max_tokens=7))
    assert (refused.value.prompt_tokens, refused.value.max_tokens, refused.value.context_length) == (length + 1, 7, 100)
    for figure in ("100", str(length + 1), str(length + 8)):
        assert figure in str(refused.value)


def test_each_of_several_prompts_is_checked() -> None:
    """One that is too long is not hidden by others that fit."""
    with pytest.raises(ContextTooLong):
        preparer(context_length=10).prepare(CompletionRequest(prompts=("a", "x" * 50)))


def test_an_empty_prompt_is_refused() -> None:
    """As text where the vocabulary has no BOS, and as token ids."""

    class WithoutBos(EchoTokenizer):
        def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
            return super().encode(text, parse_special=parse_special)

    bare = Preparer(MODEL, WithoutBos(), None, 100)
    for empty in ("", ()):
        with pytest.raises(PromptRefused, match="empty"):
            bare.prepare(CompletionRequest(prompts=(empty,)))
    # With a BOS there is something to continue.
    assert list(only(preparer().prepare(CompletionRequest(prompts=("",))).prompts).tokens) == [BOS]


def test_a_base_model_refuses_a_chat_and_continues_a_text() -> None:
    """The sentence says what to use instead."""
    base = preparer(None)
    with pytest.raises(PromptRefused, match="/v1/completions") as refused:
        base.prepare(chat("hi"))
    assert "'m'" in str(refused.value)
    assert list(only(base.prepare(CompletionRequest(prompts=("hi",))).prompts).tokens) == [BOS, *b"hi"]


def test_completions_go_past_the_template() -> None:
    """Texts in order, tokenized with the model's BOS; ids go as they are, without one."""
    prepared = preparer(TEMPLATE).prepare(CompletionRequest(prompts=("hi", (1, 2, 261), "<|user|>"), n=2))
    assert [list(prompt.tokens) for prompt in prepared.prompts] == [[BOS, *b"hi"], [1, 2, 261], [BOS, 259]]
    assert prepared.n == 2


@pytest.mark.parametrize("bad", [-1, 262, 2**40])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    """Before the engine sees them, with the id in the sentence."""
    with pytest.raises(PromptRefused, match=str(bad)):
        preparer().prepare(CompletionRequest(prompts=((1, bad),)))


def test_echo_gives_each_prompt_back() -> None:
    """A text as it was sent, ids as their bytes; without `echo` nothing."""
    request = CompletionRequest(prompts=("ä", tuple("ß".encode())), echo=True)
    assert preparer().prepare(request).echoes == ("ä".encode(), "ß".encode())
    assert preparer().prepare(CompletionRequest(prompts=("ä",))).echoes is None


def test_what_a_request_gives_wins_over_the_models_defaults() -> None:
    """What neither gives is neutral; nothing is taken for not given but None."""
    model = replace(MODEL, sampling_defaults={**SAMPLING_DEFAULTS, "seed": 5, "ignore_eos": True, "min_p": 0.1})
    request = chat("hi", sampling=SamplingOptions(temperature=0.0, top_k=0, ignore_eos=False, logit_bias={7: -1.0}))
    assert preparer(model=model).prepare(request).sampling == Sampling(
        temperature=0.0,
        top_k=0,
        top_p=SAMPLING_DEFAULTS["top_p"],
        repeat_penalty=SAMPLING_DEFAULTS["repeat_penalty"],
        min_p=0.1,
        seed=5,
        ignore_eos=False,
        logit_bias={7: -1.0},
    )
    assert preparer(model=replace(MODEL, sampling_defaults={})).prepare(chat("hi")).sampling == Sampling()


def test_every_option_of_a_request_has_its_place_in_the_sampling() -> None:
    """One vocabulary of names, so none can be lost on the way."""
    values: dict[str, Any] = {
        name: {3: 1.0} if name == "logit_bias" else name == "ignore_eos" or index + 1
        for index, name in enumerate(SamplingOptions.__struct_fields__)
    }
    settled = preparer().prepare(chat("hi", sampling=SamplingOptions(**values))).sampling
    assert {name: getattr(settled, name) for name in values} == values
    assert set(values) | {"constraint", "logprobs"} == set(Sampling.__dataclass_fields__)


def test_stop_sequences_of_request_and_model_are_one_list() -> None:
    """The request's first, none twice."""
    model = replace(MODEL, stop=("<end>", "b"))
    assert preparer(model=model).prepare(chat("hi", stop=("a", "b"))).stop == ("a", "b", "<end>")
    assert preparer().prepare(chat("hi")).stop == ()


def test_template_options_reach_the_template() -> None:
    """Those of the request win over the model's own."""
    source = "{{ mood }}{{ depth }}"
    made = Preparer(MODEL, EchoTokenizer(), template(source, mood="calm", depth=1), 100)
    assert made.render((Message("user", "x"),), {"mood": "wild"}) == "wild1"


@pytest.mark.parametrize("name", ["messages", "tools", "self"])
def test_reserved_template_options_are_refused(name: str) -> None:
    """Nobody puts other messages into a prompt than those that were counted and checked."""
    with pytest.raises(PromptRefused, match=name):
        preparer().prepare(chat("hi", template_options={name: "other", "fine": 1}))


def test_a_template_that_refuses_says_why() -> None:
    """In its own words."""
    with pytest.raises(TemplateFailed, match="no system role"):
        preparer("{{ raise_exception('no system role') }}").prepare(chat("hi"))


def test_names_of_speakers_reach_the_template_only_where_given() -> None:
    """An absent name is absent, not None: templates ask whether it is there."""
    source = "{% for m in messages %}[{{ m.name if m.name is defined else '-' }}]{% endfor %}"
    messages = (Message("user", "x", name="Ann"), Message("user", "y"))
    assert preparer(source).render(messages, {}) == "[Ann][-]"


def test_a_text_is_tokenized_as_the_model_would_see_it() -> None:
    """Control tokens are read as such; BOS only when asked for."""
    tokenizer = Tokenizer()
    made = Preparer(MODEL, tokenizer, None, 100)
    assert made.tokenize("<|user|>a", add_special=False) == [259, ord("a")]
    assert made.tokenize("a", add_special=True) == [BOS, ord("a")]
    assert tokenizer.encoded == [("<|user|>a", False, True), ("a", True, True)]


class Ending(EchoTokenizer):
    """Of a model whose file puts something behind a text."""

    @property
    def ending(self) -> Sequence[int]:
        return (EOS,)


def embedding(
    tokenizer: EchoTokenizer, *inputs: str | tuple[int, ...], abilities: Iterable[Ability] = Ability
) -> Ready:
    model = Model(id="m", engine="echo", folder=Path("/nowhere"), abilities=frozenset(abilities))
    return Preparer(model, tokenizer, None, 10).prepare(EmbedRequest(inputs, dimensions=3))


def test_inputs_are_tokenized() -> None:
    """A text begins and ends as the model's file has it; token ids are as they are."""
    prepared = embedding(Ending(), "hi", (1, 2))
    assert prepared == PreparedTexts(([BOS, *b"hi", EOS], (1, 2)), 3)
    assert embedding(EchoTokenizer(), "hi") == PreparedTexts(([BOS, *b"hi"],), 3)


def test_inputs_that_cannot_be_embedded() -> None:
    """The whole context may be filled, and no more; and only with a model that embeds."""
    assert embedding(Ending(), "x" * 8)
    with pytest.raises(ContextTooLong, match="11 in the prompt"):
        embedding(Ending(), "x" * 9)
    with pytest.raises(PromptRefused, match="vocabulary"):
        embedding(Ending(), (99999,))
    with pytest.raises(PromptRefused, match="empty"):
        embedding(Ending(), ())
    with pytest.raises(PromptRefused, match="'m' cannot embed"):
        embedding(Ending(), "hi", abilities=[Ability.TEXT])


def questions(*documents: str, source: str | None = None, context_length: int = 400) -> PreparedQuestions:
    model = Model(id="m", engine="echo", folder=Path("/nowhere"), abilities=frozenset(Ability), rerank_template=source)
    ready = preparer(TEMPLATE, context_length=context_length, model=model).prepare(RerankRequest("why?", documents))
    assert isinstance(ready, PreparedQuestions)
    return ready


def test_a_question_for_each_document() -> None:
    """As a chat in the model's own template; the answers begin with the first tokens of yes and no."""
    ready = questions("<b>", "c")
    texts = [EchoTokenizer().decode(tokens).decode() for tokens in ready.inputs]
    assert [text.split("Query: ")[1] for text in texts] == ["why?\n\nDocument: <b>", "why?\n\nDocument: c"]
    assert all(text.startswith(QUESTION) for text in texts)
    assert (ready.yes, ready.no) == (ord("y"), ord("n"))


def test_a_question_in_the_manifests_own_words() -> None:
    ready = questions("b", source="{{ query }} | {{ document }}<|assistant|>")
    assert EchoTokenizer().decode(ready.inputs[0]) == b"why? | b"
    assert list(ready.inputs[0])[-1] == EchoTokenizer().encode("<|assistant|>")[0]


def test_a_question_leaves_room_for_its_answer() -> None:
    length = len(questions("b").inputs[0])
    assert questions("b", context_length=length + 1)
    with pytest.raises(ContextTooLong):
        questions("b", context_length=length)


def test_a_models_own_system_message_speaks_when_the_chat_has_none() -> None:
    """Also in counts and texts; a chat that has one is left as it is, and a runtime that can take none refuses."""
    source = "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}"
    made = Preparer(replace(MODEL, system="Be Mario."), EchoTokenizer(), template(source), 100)
    assert made.text_of(chat("hi")) == "[system Be Mario.][user hi]"
    own = ChatRequest((Message("system", "Be Luigi."), Message("user", "hi")))
    assert made.text_of(own) == "[system Be Luigi.][user hi]"
    hidden = Preparer(replace(MODEL, system="Be Mario."), HiddenTokenizer("m"), None, 100)
    with pytest.raises(PromptRefused, match="system message"):
        hidden.prepare(chat("hi"))


def test_a_models_own_adapter_answers_when_none_is_named() -> None:
    """And a request may name another of them."""
    adapters = tuple(LoraAdapter(name, Path("/nowhere")) for name in ("poet", "bard"))
    made = preparer(model=replace(MODEL, adapters=adapters, adapter="poet"))
    assert [prompt.adapter for prompt in made.prepare(CompletionRequest(("a",))).prompts] == ["poet"]
    assert only(made.prepare(chat("hi", adapter="bard")).prompts).adapter == "bard"


def test_an_adapter_is_the_models_own() -> None:
    """It goes with each prompt; one the model does not have is refused by name, before the engine is asked."""
    made = preparer(model=replace(MODEL, adapters=(LoraAdapter("poet", Path("/nowhere/poet")),)))
    for request in (chat("hi", adapter="poet"), CompletionRequest(("a", "b"), adapter="poet")):
        assert {prompt.adapter for prompt in made.prepare(request).prompts} == {"poet"}
    assert only(made.prepare(chat("hi")).prompts).adapter is None
    for request in (chat("hi", adapter="bard"), CompletionRequest(("a",), adapter="bard")):
        with pytest.raises(AdapterMissing, match=r"no adapter 'bard'"):
            made.prepare(request)


def test_where_only_the_runtime_can_cut_text() -> None:
    """One message of a user goes through as it is; whatever else would need a tokenizer is refused, with what to do."""
    model = replace(MODEL, template_options={"enable_thinking": False})
    made = Preparer(model, HiddenTokenizer("m"), template(PLAIN), 100)
    prompt = only(made.prepare(chat("Grüße <|eos|>", max_tokens=7, stop=("x",))).prompts)
    assert prompt == Prompt((), 7, turn=Turn("Grüße <|eos|>", thinking=False))
    louder = made.prepare(chat("hi", template_options={"enable_thinking": True, "reasoning_effort": "high"}))
    assert only(louder.prompts) == Prompt((), 100, turn=Turn("hi"))
    system = ChatRequest(messages=(Message("system", "be"), Message("user", "hi")))
    turns = ChatRequest(messages=(Message("user", "hi"), Message("assistant", "ho"), Message("user", "hm")))
    kwargs = chat("hi", template_options={"tone": "calm"})
    for request in (system, turns, kwargs, CompletionRequest(("text",)), CompletionRequest(((1, 2),))):
        with pytest.raises(PromptRefused, match=r"Copy tokenizer\.json"):
            made.prepare(request)
    for look in (lambda: made.tokenize("hi", add_special=True), lambda: made.render((Message("user", "hi"),), {})):
        with pytest.raises(PromptRefused, match=r"Copy tokenizer\.json"):
            look()


def test_a_begun_answer_is_gone_on_with() -> None:
    """The prompt ends with its own words, not with what closes a turn or opens one; blanks at its end stay."""
    begun = (Message("user", "hi"), Message("assistant", "Once upon "))
    request = ChatRequest(begun, continue_last=True)
    assert preparer(TEMPLATE).text_of(request) == "<|user|>hi<|end|><|assistant|>Once upon "
    assert list(only(preparer(TEMPLATE).prepare(request).prompts).tokens) == preparer(TEMPLATE).tokens_of(request)


def test_a_template_that_forgets_a_begun_answer_cannot_go_on() -> None:
    """It says so, rather than answer something else."""
    source = "{% for message in messages if message.role == 'user' %}{{ message.content }}{% endfor %}"
    request = ChatRequest((Message("user", "hi"), Message("assistant", "ho")), continue_last=True)
    with pytest.raises(PromptRefused, match="cannot be gone on with"):
        preparer(source).prepare(request)


def test_a_prompt_is_counted_whether_or_not_it_fits() -> None:
    """Whoever counts wants to know by how much it is too long."""
    assert len(preparer(context_length=10).tokens_of(chat("x" * 50))) == 51


@pytest.mark.parametrize(
    ("output", "form"),
    [
        (JsonObject(), constraint.JsonObject()),
        (JsonSchema({"type": "string"}), constraint.JsonSchema({"type": "string"})),
        (Regex("[ab]+"), constraint.Regex("[ab]+")),
        (Grammar('root ::= "a"', "gbnf"), constraint.Gbnf('root ::= "a"')),
        (Grammar('start: "a"', "lark"), constraint.Lark('start: "a"')),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_answer_is_held_to_reaches_the_engine(output: OutputFormat, form: constraint.Form) -> None:
    """In the words of the engines, of chats and of plain texts."""
    for request in (chat("hi", output=output), CompletionRequest(prompts=("hi",), output=output)):
        sampling = preparer().prepare(request).sampling
        assert sampling.constraint == constraint.Constraint(form)


def test_an_answer_begun_by_the_client_is_held_to_no_format() -> None:
    """What was begun is not the model's, and a format that begins in its middle cannot be said."""
    with pytest.raises(PromptRefused, match="format"):
        preparer().prepare(chat("hi", output=JsonObject(), continue_last=True))


def test_a_request_may_bring_a_template() -> None:
    """It is rendered as the model's own would be, with its tokens, also for a model that has none."""
    for source in (PLAIN, None):
        [prompt] = ready(preparer(source), chat("hi", template="<{{ messages[0].content }}>")).prompts
        assert EchoTokenizer().decode(list(prompt.tokens)).decode().endswith("<hi>")
    with pytest.raises(TemplateFailed):
        preparer().prepare(chat("hi", template="{% for %}"))


def ready(made: Preparer, request: ChatRequest) -> Prepared:
    prepared = made.prepare(request)
    assert isinstance(prepared, Prepared)
    return prepared
