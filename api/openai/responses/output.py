"""The output of a response: its items as they grow, out of the events of a job."""

from __future__ import annotations

from typing import Any, TypeAlias

from api.openai.responses.head import Head
from api.openai.responses.tools import Caller, free_input
from tasks.events import (
    ChoiceEnded,
    Event,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
)

Step: TypeAlias = tuple[str, dict[str, Any]]
"""The type of a frame, and its fields."""


class Output:
    """Puts the items together and tells of each step. One item is open at a time: it ends where another kind begins."""

    def __init__(self, head: Head) -> None:
        self.items: list[dict[str, Any]] = []
        self._head = head
        self._open: _Item | None = None

    def event(self, event: Event) -> list[Step]:
        """What one event adds."""
        match event:
            case ReasoningDelta(text, 0) if text:
                return self._grow(_Thought, text)
            case TextDelta(text, 0, logprobs) if text or logprobs:
                return self._grow(_Message, text, logprobs)
            case ToolCallStarted(_, id, name, 0):
                caller = self._head.callers.get(name) or Caller(name)
                return self._begin(_Custom if caller.custom else _Function, caller, id)
            case ToolCallDelta(_, arguments, 0) if isinstance(self._open, _Call):
                return self._open.grow(arguments)
            case ChoiceEnded(0, reason):
                return self.end(whole=reason is not FinishReason.LENGTH)
        return []

    def end(self, *, whole: bool) -> list[Step]:
        """The item that is open will not grow any more; `whole` tells whether it says all it was to say."""
        if self._open is None:
            return []
        steps = self._open.close("completed" if whole else "incomplete")
        self._open = None
        return steps

    def settle(self) -> None:
        """Have the items say all that was said so far."""
        if self._open is not None:
            self._open.settle()

    def _grow(
        self, kind: type[_Message] | type[_Thought], text: str, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> list[Step]:
        steps = [] if type(self._open) is kind else self._begin(kind)
        assert isinstance(self._open, _Message | _Thought)
        return steps + self._open.grow(text, logprobs)

    def _begin(self, kind: type[_Item], *about: Any) -> list[Step]:
        steps = self.end(whole=True)
        self._open = kind(self._head, len(self.items), *about)
        self.items.append(self._open.item)
        return steps + self._open.begin()


class _Item:
    """One item of the output; `item` is the object as it stands, and grows with it."""

    prefix: str

    def __init__(self, head: Head, index: int) -> None:
        self.index = index
        self.head = head
        self.item: dict[str, Any] = {"id": f"{self.prefix}_{head.job}_{index}", "status": "in_progress"}

    def step(self, kind: str, **fields: Any) -> Step:
        return f"response.{kind}", {"item_id": self.item["id"], "output_index": self.index, **fields}

    def begin(self) -> list[Step]:
        # A copy: the object grows before the frame is read by whoever collects frames.
        return [("response.output_item.added", {"output_index": self.index, "item": dict(self.item)})]

    def settle(self) -> None:
        """Put together what has grown in parts."""

    def close(self, status: str) -> list[Step]:
        self.settle()
        self.item["status"] = status
        return [("response.output_item.done", {"output_index": self.index, "item": self.item})]


class _Text(_Item):
    """An item with one text in it."""

    part: dict[str, Any]

    def __init__(self, head: Head, index: int) -> None:
        super().__init__(head, index)
        self.texts: list[str] = []

    def settle(self) -> None:
        self.part["text"] = "".join(self.texts)


class _Message(_Text):
    prefix = "msg"

    def __init__(self, head: Head, index: int) -> None:
        super().__init__(head, index)
        self.part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.item |= {"type": "message", "role": "assistant", "content": []}

    def begin(self) -> list[Step]:
        added = super().begin()
        self.item["content"] = [self.part]
        return [*added, self.step("content_part.added", content_index=0, part=self.part | {"logprobs": []})]

    def grow(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[Step]:
        self.texts.append(text)
        told = [_logprob(each) for each in logprobs] if self.head.logprobs is not None else []
        self.part["logprobs"] += told
        return [self.step("output_text.delta", content_index=0, delta=text, logprobs=told)]

    def close(self, status: str) -> list[Step]:
        done = super().close(status)
        text, logprobs = self.part["text"], self.part["logprobs"]
        return [
            self.step("output_text.done", content_index=0, text=text, logprobs=logprobs),
            self.step("content_part.done", content_index=0, part=self.part),
            *done,
        ]


class _Thought(_Text):
    """What the model thought: told in the place of a summary to who asked for one, else as it is."""

    prefix = "rs"

    def __init__(self, head: Head, index: int) -> None:
        super().__init__(head, index)
        self.item |= {"type": "reasoning", "summary": [], "content": [], "encrypted_content": None}
        self.field, kind = ("summary", "summary_text") if head.summary else ("content", "reasoning_text")
        self.place = {f"{self.field}_index": 0}
        self.part = {"type": kind, "text": ""}
        self.added = "reasoning_summary_part" if head.summary else "content_part"
        self.grown = "reasoning_summary_text" if head.summary else "reasoning_text"

    def begin(self) -> list[Step]:
        added = super().begin()
        self.item[self.field] = [self.part]
        return [*added, self.step(f"{self.added}.added", **self.place, part=dict(self.part))]

    def grow(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[Step]:
        self.texts.append(text)
        return [self.step(f"{self.grown}.delta", **self.place, delta=text)]

    def close(self, status: str) -> list[Step]:
        done = super().close(status)
        return [
            self.step(f"{self.grown}.done", **self.place, text=self.part["text"]),
            self.step(f"{self.added}.done", **self.place, part=self.part),
            *done,
        ]


class _Call(_Item):
    """A call of a tool, under the name that the client has for it."""

    def __init__(self, head: Head, index: int, caller: Caller, call: str) -> None:
        super().__init__(head, index)
        self.arguments: list[str] = []
        self.item |= {"call_id": call, "name": caller.name}
        if caller.namespace is not None:
            self.item["namespace"] = caller.namespace

    def grow(self, arguments: str) -> list[Step]:
        self.arguments.append(arguments)
        return []


class _Function(_Call):
    prefix = "fc"

    def __init__(self, head: Head, index: int, caller: Caller, call: str) -> None:
        super().__init__(head, index, caller, call)
        self.item |= {"type": "function_call", "arguments": ""}

    def grow(self, arguments: str) -> list[Step]:
        super().grow(arguments)
        return [self.step("function_call_arguments.delta", delta=arguments)] if arguments else []

    def settle(self) -> None:
        self.item["arguments"] = "".join(self.arguments)

    def close(self, status: str) -> list[Step]:
        done = super().close(status)
        whole = self.item["arguments"]
        return [self.step("function_call_arguments.done", name=self.item["name"], arguments=whole), *done]


class _Custom(_Call):
    """Its input stands inside the model's arguments, so it can be told only once they are whole."""

    prefix = "ctc"

    def __init__(self, head: Head, index: int, caller: Caller, call: str) -> None:
        super().__init__(head, index, caller, call)
        self.item |= {"type": "custom_tool_call", "input": ""}

    def close(self, status: str) -> list[Step]:
        self.item["input"] = text = free_input("".join(self.arguments))
        return [
            self.step("custom_tool_call_input.delta", delta=text),
            self.step("custom_tool_call_input.done", input=text),
            *super().close(status),
        ]


def _logprob(each: TokenLogprob) -> dict[str, Any]:
    top = [_token(token, logprob) for token, logprob in each.top]
    return _token(each.token, each.logprob) | {"top_logprobs": top}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "bytes": list(token), "logprob": logprob}
