"""A conversation at a prompt: what is said, and the commands that begin with a slash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops.chat.answer import Answer
from ops.chat.screen import Screen, note
from ops.service import Service, ServiceError

FENCE = '"""'
DEFAULT = "default"

HELP = f"""\
{FENCE}text{FENCE}          text of several lines
/system [TEXT]      show or set the system message
/set [NAME [VALUE]] show what is set, set it, or by {DEFAULT} leave it to the model again:
                    {{settings}}
/model [NAME]       show the model, or go on with another
/stats              tokens and speed of the last answer
/clear              forget what was said
/save FILE          write the conversation as JSON
/help               this
/bye                leave, as Ctrl-D does; Ctrl-C stops an answer"""


def _switch(word: str) -> bool:
    return {"on": True, "off": False}[word]


_SETTINGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "temperature": ("temperature", float, "a number"),
    "top_p": ("top_p", float, "a number"),
    "top_k": ("top_k", int, "a whole number"),
    "max_tokens": ("max_tokens", int, "a whole number"),
    "seed": ("seed", int, "a whole number"),
    "thinking": ("think", _switch, "on or off"),
}
"""The field of the request for each, and how its value is read and described."""


class Session:
    """`options` are fields of the request, such as `temperature`."""

    def __init__(self, service: Service, model: str, options: dict[str, Any], system: str | None = None) -> None:
        self._service = service
        self._model = model
        self._options = options
        self._system = system
        self._said: list[dict[str, str]] = []
        self._last: Answer | None = None

    def talk(self, read: Callable[[str], str]) -> None:
        """Until the end of what `read`, which is given a prompt, has."""
        while True:
            try:
                text = _turn(read)
                text.encode()
                if text.strip() == "/bye":
                    return
                if text.startswith("/"):
                    self._obey(text)
                elif text.strip():
                    self._ask(text)
            except UnicodeEncodeError:
                note("That is no text in UTF-8, and was not sent. What was said before is kept.")
            except KeyboardInterrupt:
                note("")
            except EOFError:
                note("")
                return

    def _ask(self, text: str) -> None:
        screen = Screen()
        self._last = answer = Answer(self._service, self._body(text), screen.note)
        try:
            for piece in answer:
                screen.show(piece)
            screen.end()
        except KeyboardInterrupt:
            answer.cancel()
            screen.end()
            note("Stopped.")
        except ServiceError as error:
            screen.end()
            note(f"{error}{'' if answer.content else ' What was said before is kept; ask again.'}")
        except BaseException:
            answer.cancel()
            raise
        if answer.content:
            self._said += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.content}]

    def _body(self, text: str) -> dict[str, Any]:
        return {"model": self._model, **self._options, "messages": [*self._messages(), _message("user", text)]}

    def _messages(self) -> list[dict[str, str]]:
        return ([_message("system", self._system)] if self._system else []) + self._said

    def _obey(self, text: str) -> None:
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        match command.strip():
            case "/system":
                self._system = rest or self._system
                note(self._system or "There is no system message.")
            case "/set":
                note(self._set(*rest.partition(" ")[::2]))
            case "/model":
                note(self._choose(rest))
            case "/stats":
                note(_stats(self._last))
            case "/clear":
                self._said.clear()
                note("Forgotten.")
            case "/save":
                note(self._save(rest))
            case "/help":
                note(HELP.format(settings=", ".join(_SETTINGS)), 20)
            case other:
                note(f"There is no {other}. /help shows what there is.")

    def _choose(self, model: str) -> str:
        if model:
            try:
                self._service.model(model)
            except ServiceError as error:
                return f"{error} It stays with {self._model}."
            self._model = model
        return self._model

    def _set(self, name: str, value: str) -> str:
        if not name:
            return "\n".join(map(self._in_force, _SETTINGS))
        if name not in _SETTINGS:
            return f"'{name}' cannot be set. There are {', '.join(_SETTINGS)}."
        field, read, kind = _SETTINGS[name]
        if not value:
            return self._in_force(name)
        if value.strip() == DEFAULT:
            self._options.pop(field, None)
            return f"{name} is left to the model."
        try:
            self._options[field] = read(value.strip())
        except (ValueError, KeyError):
            return f"'{value}' will not do: {name} is {kind}, or {DEFAULT}."
        return f"{name} is {value.strip()}."

    def _in_force(self, name: str) -> str:
        match self._options.get(_SETTINGS[name][0]):
            case None:
                return f"{name} is left to the model"
            case bool(value):
                return f"{name} {'on' if value else 'off'}"
            case value:
                return f"{name} {value}"

    def _save(self, file: str) -> str:
        if not file:
            return "Say where: /save FILE"
        path = Path(file).expanduser()
        shown = json.dumps({"model": self._model, "messages": self._messages()}, indent=2, ensure_ascii=False)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as to:
                to.write(shown + "\n")
        except OSError as error:
            return f"{path} cannot be written: {error.strerror}."
        return f"Written: {path}"


def _turn(read: Callable[[str], str]) -> str:
    line = read(">>> ")
    if not line.startswith(FENCE):
        return line
    lines = [line.removeprefix(FENCE)]
    while not lines[-1].endswith(FENCE):
        lines.append(read("... "))
    lines[-1] = lines[-1].removesuffix(FENCE)
    if len(lines) > 1:  # a fence that stands alone begins and ends no line of the text
        lines = lines[not lines[0] : len(lines) - (not lines[-1])]
    return "\n".join(lines)


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _stats(answer: Answer | None) -> str:
    if answer is None or answer.timings is None or answer.usage is None:
        return "No answer has ended yet." if answer is None else "The last answer did not come to its end."
    times = answer.timings
    first = f"first token after {answer.first:.2f} s, " if answer.first is not None else ""
    return (
        f"{first}{times['predicted_n']} tokens said at {times['predicted_per_second']:.1f} tokens/s, "
        f"{times['prompt_n']} read at {times['prompt_per_second']:.1f} tokens/s and {times['cache_n']} from the cache; "
        f"waited {times['queued_ms'] / 1000:.2f} s, loaded for {times['load_ms'] / 1000:.2f} s"
    )
