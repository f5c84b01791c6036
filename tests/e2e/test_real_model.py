"""The demo model through the whole service: real text, real counts, real cancellation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from ops.bench.perplexity import measure
from ops.service import Service
from tasks import keys
from tasks.commands import Command, Render, Tokenize
from tasks.envelope import CommandReply, Envelope
from tasks.jobs import new_job_id
from tasks.requests import ChatRequest, Message
from tests.e2e.test_cancellation import until_state, view
from tests.fakes.standing import Standing
from tests.npu.demo import IDS, demo_model
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.model

MODEL = IDS["llamacpp"]
CONTEXT = 512
QUESTION = "Name three colours of the rainbow, please."


@pytest.fixture(scope="module")
def stack(standing: Standing) -> Iterator[Stack]:
    """A service whose only model is the demo's file, dropped into the folder as it is, with a small context."""
    weights = demo_model("llamacpp").path
    assert weights is not None
    made = Stack({}, default_model=MODEL, context_length=CONTEXT)
    made.preload(standing.environment)
    (made.folder / "models" / weights.name).symlink_to(weights.resolve())
    with made:
        eventually(lambda: made.state(MODEL) == "loaded", what="a loaded model")
        yield made


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    """The official client, as its users configure it."""
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=LIMIT)


def chat(client: openai.OpenAI, *turns: str, **rest: Any) -> ChatCompletion:
    """One whole answer to turns of user and assistant."""
    roles = ("user", "assistant")
    messages: Any = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    answer: ChatCompletion = client.chat.completions.create(
        model=MODEL, messages=messages, **{"temperature": 0, "max_tokens": 12, **rest}
    )
    return answer


def said(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def ask_board(stack: Stack, command: Command) -> Any:
    """A command's result, as any process may ask for it."""
    redis = stack.redis
    envelope = Envelope(new_job_id(), new_job_id(), command)
    with redis.pubsub(ignore_subscribe_messages=True) as replies:
        replies.subscribe(keys.replies(envelope.reply_to))
        eventually(lambda: redis.publish(keys.commands("test-board"), msgspec.json.encode(envelope)), what="a listener")
        message = eventually(lambda: replies.get_message(timeout=0.1), what="a reply")
    reply = msgspec.json.decode(message["data"], type=CommandReply)
    assert reply.error == ""
    return msgspec.json.decode(reply.result)


def test_a_text_has_a_lower_perplexity_than_its_words_in_disorder(stack: Stack, tmp_path: Path) -> None:
    """As the model's own logits tell, asked of the service by `bench perplexity`; the same each time."""
    words = "The sun rises in the east."
    (tmp_path / "text").write_text(words)
    (tmp_path / "disorder").write_text(" ".join(sorted(words.split())))
    text, disorder = (measure(Service(stack.url), MODEL, tmp_path / name, 8, 64) for name in ("text", "disorder"))
    assert 1 < text.perplexity < disorder.perplexity < 50_000 and text.tokens == 6
    assert text.low < text.perplexity < text.high and text.bits_per_byte > 0


def test_streamed_and_whole_are_one_answer(client: openai.OpenAI) -> None:
    """At temperature 0, word for word and token for token, and a third time the same."""
    whole = chat(client, QUESTION)
    assert said(whole).strip()
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(whole)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert said(chat(client, QUESTION)) == said(whole)


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    """Hot, the same seed says the same; other seeds say something else."""

    def hot(seed: int) -> str:
        return said(chat(client, "Tell me a story.", temperature=1.5, top_p=1.0, seed=seed))

    assert hot(7) == hot(7)
    assert len({hot(seed) for seed in (7, 8, 9)}) > 1


def test_max_tokens(client: openai.OpenAI) -> None:
    """Exactly as many, and `length` for a reason."""
    answer = chat(client, "Tell me a very long story.", max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5


def test_stop(client: openai.OpenAI) -> None:
    """The same answer, cut just before the sequence, though that runs across tokens."""
    whole = said(chat(client, QUESTION))
    inside = whole[len(whole) // 2 : len(whole) // 2 + 4]
    answer = chat(client, QUESTION, stop=[inside])
    assert said(answer) == whole[: whole.index(inside)]
    assert answer.choices[0].finish_reason == "stop"


def test_usage_is_the_models_own_count(client: openai.OpenAI, stack: Stack) -> None:
    """What the template makes of the messages, tokenized by the model, is what a client is billed for."""
    answer = chat(client, QUESTION)
    rendered = ask_board(stack, Render(MODEL, ChatRequest((Message("user", QUESTION),))))
    assert QUESTION in rendered
    tokens = ask_board(stack, Tokenize(MODEL, rendered, add_special=False))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens)
    spoken = ask_board(stack, Tokenize(MODEL, said(answer), add_special=False))
    ended_itself = answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens in (len(spoken), len(spoken) + ended_itself)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_second_turn_reuses_the_first(client: openai.OpenAI) -> None:
    """Only what is new is prefilled, and the usage says how much was not."""
    first = chat(client, "My name is Ann. " + QUESTION)
    second = chat(client, "My name is Ann. " + QUESTION, said(first), "And one more?")
    assert first.usage is not None and second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert first.usage.prompt_tokens <= cached + 8
    assert cached < second.usage.prompt_tokens


def test_a_context_that_is_too_small(client: openai.OpenAI) -> None:
    """Refused with exact figures, before the engine is touched."""
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, "rainbow " * CONTEXT, max_tokens=7)
    assert refused.value.code == "context_length_exceeded"
    assert str(CONTEXT) in refused.value.message
    assert said(chat(client, "Hi"))


def begin(stack: Stack, text: str) -> tuple[Any, httpx.Response, Iterator[str], str]:
    """A long streamed answer of which something has come."""
    context = httpx.stream(
        "POST",
        f"{stack.url}/v1/chat/completions",
        json={
            "model": MODEL,
            "stream": True,
            "messages": [{"role": "user", "content": text}],
            "logit_bias": {"2": -100},  # its end of turn, so that it goes on until it is stopped
        },
        timeout=LIMIT,
    )
    reply = context.__enter__()
    lines = reply.iter_lines()
    assert any('"content":"' in line and '"content":""' not in line for line in lines)
    return context, reply, lines, reply.headers["x-job-id"]


def test_counting_waits_for_no_generation(client: openai.OpenAI, stack: Stack) -> None:
    """While the engine computes, a board counts, cuts and joins; and the count is what the answer is billed for."""

    def post(path: str, **body: Any) -> Any:
        reply = httpx.post(stack.url + path, json=body, timeout=LIMIT)
        assert reply.status_code == 200, reply.text
        return reply.json()

    messages = [{"role": "user", "content": QUESTION}]
    context, _, _, job = begin(stack, "Tell me a story.")
    try:
        counted = post("/v1/messages/count_tokens", messages=messages)["input_tokens"]
        encoded = post("/tokenize", messages=messages, return_token_strs=True)
        prompt = post("/apply-template", messages=messages)["prompt"]
        pieces = post("/tokenize", content="Grün 🌈", with_pieces=True)["tokens"]
        text = post("/detokenize", tokens=[piece["id"] for piece in pieces])["content"]
        assert view(stack, job)["state"] == "running"
    finally:
        context.__exit__(None, None, None)
    answer = chat(client, QUESTION)
    assert answer.usage is not None
    assert counted == encoded["count"] == len(encoded["tokens"]) == answer.usage.prompt_tokens
    assert QUESTION in "".join(encoded["token_strs"]) and QUESTION in prompt
    assert text == "Grün 🌈"
    joined = [piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"]) for piece in pieces]
    assert b"".join(joined).decode() == text
    assert any(isinstance(piece["piece"], list) for piece in pieces)


def test_a_begun_answer_is_gone_on_with(client: openai.OpenAI, stack: Stack) -> None:
    """What follows its beginning is what the model says behind it, and nothing is repeated."""
    turns: Any = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The first colour is"}]
    anthropic_client = anthropic.Anthropic(base_url=stack.url, api_key="unused", max_retries=0, timeout=LIMIT)
    message = anthropic_client.messages.create(
        model=MODEL, max_tokens=12, messages=turns, extra_body={"temperature": 0}
    )
    begun = ChatRequest((Message("user", QUESTION), Message("assistant", "The first colour is")), continue_last=True)
    prompt = ask_board(stack, Render(MODEL, begun))
    assert prompt.endswith("The first colour is")
    same = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0)
    assert message.content[0].text == same.choices[0].text  # type: ignore[union-attr]
    assert message.usage.output_tokens > 0


class Person(BaseModel):
    """What an answer is parsed as."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    mood: Literal["gay", "grim"] | None
    tags: list[str] = Field(max_length=2)


ANN: Any = [{"role": "user", "content": "Describe Ann, who is 31 years old."}]


def test_answers_are_parsed_as_models_of_pydantic(client: openai.OpenAI) -> None:
    """Whole and streamed, hot and cold, though the model is too small to do it by itself."""
    whole = client.chat.completions.parse(model=MODEL, messages=ANN, response_format=Person, temperature=0)
    assert whole.choices[0].message.parsed is not None
    assert whole.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(
        model=MODEL, messages=ANN, response_format=Person, temperature=1.0, seed=3, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    """By the name of its keyword, and in the field it was sent in."""
    odd: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as refused:
        client.chat.completions.create(model=MODEL, messages=ANN, response_format=odd)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "response_format")


def test_the_best_of_several(client: openai.OpenAI) -> None:
    """Is the one whose tokens are the likeliest in the mean."""
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The sea", "temperature": 1.0, "seed": 5, "max_tokens": 4}
    three = client.completions.create(**asked, n=3, logprobs=0).choices
    means = [sum(log.token_logprobs) / 4 for log in (each.logprobs for each in three) if log and log.token_logprobs]
    best = client.completions.create(**asked, best_of=3)
    assert len(means) == 3
    assert [each.text for each in best.choices] == [three[means.index(max(means))].text]
    assert best.usage is not None and best.usage.completion_tokens == 12


def test_an_answer_in_a_format_goes_on_after_a_crash(client: openai.OpenAI, stack: Stack, standing: Standing) -> None:
    """In the middle of its JSON, and with the log probabilities of every token."""
    schema = Person.model_json_schema()
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": ANN,
        "temperature": 0,
        "max_tokens": 150,
        "logprobs": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    }
    before = client.chat.completions.create(**asked)
    text, tokens = "", b""
    with standing.at(10) as stand:
        raw = client.chat.completions.with_raw_response.create(**asked, stream=True)
        for chunk in raw.parse():
            choice = chunk.choices[0]
            if choice.delta.content and not text:
                stack.child(MODEL).kill()
                stand(CONTEXT)
            text += choice.delta.content or ""
            if choice.logprobs is not None:
                tokens += b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content or ())
    assert text == said(before)
    assert tokens.decode() == text
    assert Person.model_validate_json(text)
    assert view(stack, raw.headers["x-job-id"])["attempts"] == 2


def test_cancelled_in_mid_answer(client: openai.OpenAI, stack: Stack) -> None:
    """The client leaves, the engine stops, and the next answer is what it would have been."""
    before = said(chat(client, QUESTION))
    context, _, _, job = begin(stack, "Count to one thousand.")
    context.__exit__(None, None, None)
    found = until_state(stack, job, "cancelled")
    assert 0 < found["usage"]["completion_tokens"] < CONTEXT
    assert said(chat(client, QUESTION)) == before


@pytest.mark.parametrize("by", ["a crash", "a chat"])
def test_a_greedy_answer_that_is_interrupted(client: openai.OpenAI, stack: Stack, standing: Standing, by: str) -> None:
    """It is the one it would have been, token by token, though another process with the model said its end, or the same one
    after it had answered somebody else."""
    asked: dict[str, Any] = {"max_tokens": 60, "extra_body": {"logit_bias": {"2": -100}}}
    before = chat(client, "Count to one thousand.", **asked)
    with standing.at(30):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to one thousand."}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            service_tier="flex",
            **asked,
        )
        chunks = iter(raw.parse())
        text = ""
        while len(text) < 20:
            text += next(chunks).choices[0].delta.content or ""
        if by == "a chat":
            chat(client, QUESTION)
        else:
            stack.child(MODEL).kill()
    rest = list(chunks)
    text += "".join(chunk.choices[0].delta.content or "" for chunk in rest if chunk.choices)
    assert text == said(before)
    assert before.usage is not None and rest[-1].usage is not None
    assert rest[-1].usage.completion_tokens == before.usage.completion_tokens == 60
    found = view(stack, raw.headers["x-job-id"])
    assert (found["attempts"], found["pauses"]) == (2, int(by == "a chat"))
