"""`rockchipllama run` and `rockchipllama chat`: talking to a model of a running service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ops.cli import completion, hangup, options
from ops.cli.service_address import service_of
from ops.program import program

Model = Annotated[str, typer.Argument(help="The model's name.", autocompletion=completion.models)]
System = Annotated[str | None, typer.Option(help="The system message.", show_default=False)]
Temperature = Annotated[float | None, typer.Option(min=0, help="How much chance there is.", show_default=False)]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="The most tokens of an answer.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Makes an answer come again.", show_default=False)]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking", help="Whether the model thinks first, where it can do either.", show_default=False
    ),
]


def run(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; what is piped in is put behind it.")] = None,
    system: System = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    thinking: Thinking = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The whole answer as JSON, with its job and timings.")
    ] = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Ask a model of a running service one thing. Ctrl-C ends the answer."""
    import json

    from ops.chat.answer import Answer
    from ops.chat.screen import Screen

    text = _asked(model, prompt)
    service = service_of(config, url)
    messages = [{"role": "system", "content": system}] if system else []
    body = {"model": model, "messages": [*messages, {"role": "user", "content": text}]}
    screen = Screen()
    answer = Answer(service, body | _options(temperature, max_tokens, seed, thinking), screen.note)
    with hangup.unwinding():
        try:
            for piece in answer:
                if not as_json:
                    screen.show(piece)
            if not as_json:
                screen.end()
        except BaseException:
            # The service was asked to go on while nobody reads.
            answer.cancel()
            screen.new_line()
            raise
    if as_json:
        print(json.dumps(answer.summary(), indent=2, ensure_ascii=False))


def chat(
    model: Model,
    system: System = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    thinking: Thinking = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Talk with a model of a running service. /help shows what else can be typed; Ctrl-C stops an answer, Ctrl-D leaves."""
    service = service_of(config, url)
    service.model(model)  # before anybody has typed a question
    import io
    import sys

    from ops.chat.history import History
    from ops.chat.session import Session
    from ops.client_settings import ClientSettings
    from ops.configuration import load

    session = Session(service, model, _options(temperature, max_tokens, seed, thinking), system)
    with hangup.unwinding():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # the session tells what is no text, and goes on
        if not sys.stdin.isatty():
            session.talk(lambda _: input())
            return
        with History(load(ClientSettings).chat_history.expanduser()):
            session.talk(input)


def _asked(model: str, prompt: str | None) -> str:
    import sys

    if sys.stdin.isatty():
        if prompt is None:
            raise typer.BadParameter(
                f"say what to ask, or pipe it in. For a conversation, type `{program()} chat {model}`.",
                param_hint="PROMPT",
            )
        return prompt
    try:
        piped = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise typer.BadParameter("what is piped in is no text in UTF-8.", param_hint="PROMPT") from error
    text = "\n\n".join(part for part in (prompt, piped) if part)
    if not text.strip():
        raise typer.BadParameter("say what to ask, or pipe it in.", param_hint="PROMPT")
    return text


def _options(
    temperature: float | None, max_tokens: int | None, seed: int | None, thinking: bool | None
) -> dict[str, Any]:
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed, "think": thinking}
    return {name: value for name, value in given.items() if value is not None}
