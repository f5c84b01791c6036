"""A model whose words a test has written down: rendered, parsed and counted as a worker does it, without queue or process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npu.chat_template import ChatTemplate
from npu.engine import Prompt
from npu.engines.echo import EchoTokenizer
from npu.errors import NpuError
from npu.model import Model
from tasks.events import Event, Finished, Queued, Started
from tasks.prompting.failures import failure
from tasks.prompting.prepare import Prepared, Preparer
from tasks.requests import Request
from tasks.worker.generate import Totals, run
from tests.api.scripted import JOB, TIMINGS
from tests.fakes.engines import says
from tests.fakes.transcript import Transcript

TEMPLATE = """\
{%- if tools %}<tool_call>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- for message in messages %}<|user|>{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls or [] %} {{ call.id }} {{ call.function | tojson }}{% endfor %}
{%- if message.tool_call_id is defined %} for {{ message.tool_call_id }} of {{ message.name }}{% endif %}<|end|>
{%- endfor %}{% if enable_thinking is not defined or enable_thinking %}{# </think> #}{% endif %}<|assistant|>"""
"""Of a model that calls tools as Hermes does, and thinks between `<think>` and `</think>`."""


class Speaker:
    """Says its answers one after another, a request each, and the last one from then on. Give it to `ScriptedRelay.speak`."""

    def __init__(self, *answers: str, size: int = 3, **fields: Any) -> None:
        """Each piece has `size` bytes. `fields` are those of the model."""
        model = Model(id="tiny", engine="echo", folder=Path("/nowhere"), **fields)
        self._preparer = Preparer(model, EchoTokenizer(), ChatTemplate(model.template or TEMPLATE), 100_000)
        self._answers = list(answers)
        self._size = size
        self.prompts: list[str] = []
        """What the model read, as text; control tokens are left out."""

    def __call__(self, request: Request) -> Iterator[Event]:
        """What becomes of a request."""
        yield Queued()
        yield Started("w", "b")
        text = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        transcript, totals = Transcript(), Totals()
        transcript.forced = True
        engine = says(text, size=self._size)
        try:
            prepared = self._preparer.prepare(request)
            assert isinstance(prepared, Prepared)
            self.prompts += map(self._read, prepared.prompts)
            reason = run(prepared, engine, transcript, totals, job=JOB)
        except NpuError as error:
            yield failure(error)
            return
        yield from transcript
        yield Finished(reason, totals.usage(), TIMINGS)

    def _read(self, prompt: Prompt) -> str:
        return EchoTokenizer().decode(prompt.tokens).decode()
