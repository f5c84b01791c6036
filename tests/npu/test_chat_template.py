"""Templates as models bring them, and templates nobody should have written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from npu.chat_template import _CHILD, ChatTemplate, _Child
from npu.errors import TemplateFailed
from tests.npu.engines.hosts import wait_until_gone

CHATML = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3_STYLE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == 'user' and message.content is string
           and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.found = true %}{%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set said = message.content or '' %}
        {%- if '</think>' in said %}{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {{- '<|im_start|>assistant\\n' + said }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) + '}' }}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

LLAMA3_STYLE = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%Y') %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

GEMMA_STYLE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate user/assistant') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

MISTRAL_STYLE = """\
{{- bos_token }}
{%- for message in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{%- generation %}{{- ' ' + message.content + eos_token }}{%- endgeneration %}{%- endif %}
{%- endfor %}
"""

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}


def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **options)


class TestTemplatesInTheWild:
    def test_chatml(self) -> None:
        assert render(CHATML, SYSTEM, USER) == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_without_generation_prompt(self) -> None:
        assert render(CHATML, USER, SAID, add_generation_prompt=False) == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        )

    def test_thinking_is_cut_from_earlier_turns_and_switched_off_by_an_option(self) -> None:
        thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}
        assert render(QWEN3_STYLE, USER, thought, USER, enable_thinking=False) == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )

    def test_tools_and_calls(self) -> None:
        tool = {
            "type": "function",
            "function": {"name": "weather", "description": "für <Ö>", "parameters": {"b": 1, "a": 2}},
        }
        call = {"function": {"name": "weather", "arguments": {"city": "Köln"}}}
        answered = {"role": "assistant", "content": None, "tool_calls": [call]}
        assert render(QWEN3_STYLE, SYSTEM, USER, answered, tools=[tool]) == (
            "<|im_start|>system\nBe kind.\n\n# Tools\n<tools>\n"
            '{"type": "function", "function": {"name": "weather", "description": "für <Ö>", "parameters": {"b": 1, "a": 2}}}\n'
            "</tools><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\n"
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n'
            "<|im_start|>assistant\n"
        )

    def test_llama3_with_bos_and_date(self) -> None:
        assert render(LLAMA3_STYLE, {"role": "user", "content": "  Hi "}) == (
            f"<s><|start_header_id|>system<|end_header_id|>\n\nToday: {datetime.now():%Y}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        )

    def test_gemma(self) -> None:
        assert render(GEMMA_STYLE, USER, SAID, USER) == (
            "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
            "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
        )

    def test_a_refusal_carries_the_templates_own_words(self) -> None:
        with pytest.raises(TemplateFailed, match="System role not supported"):
            render(GEMMA_STYLE, SYSTEM, USER)

    def test_mistral_with_generation_tags(self) -> None:
        assert render(MISTRAL_STYLE, SYSTEM, USER, SAID, USER) == "<s>[INST] Hi [/INST] Hello</s>[INST] Hi [/INST]"

    def test_blocks_leave_no_blank_lines(self) -> None:
        assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"

    def test_loop_controls(self) -> None:
        assert render("{% for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "1"

    def test_tojson_keeps_order_and_characters_and_indents(self) -> None:
        assert render("{{ x | tojson }}", x={"b": "<é>", "a": None}) == '{"b": "<é>", "a": null}'
        assert render("{{ x | tojson(indent=2) }}", x={"b": 1}) == '{\n  "b": 1\n}'

    def test_options_of_the_template_yield_to_those_of_the_call(self) -> None:
        template = ChatTemplate(
            "{{ mood }}{{ pad_token }}", special_tokens={"pad_token": "P"}, options={"mood": "calm"}
        )
        assert template.render([]) == "calmP"
        assert template.render([], mood="wild") == "wildP"

    def test_half_a_surrogate_pair_survives(self) -> None:
        assert render("{{ messages[0].content }}", {"role": "user", "content": "\ud800"}) == "\ud800"


HOSTILE = {
    "a gigabyte by multiplication": "{{ 'a' * 10**9 }}",
    "a gigabyte by doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a gigabyte by formatting": "{{ '%1000000000d' % 1 }}",
    "a gigabyte by format()": "{{ '{:1000000000d}'.format(1) }}",
    "a gigabyte by padding": "{{ 'a'.ljust(10**9) }}{{ 'a' | center(10**9) }}",
    "a gigabyte by joining": "{{ ((('a' * 99999) | list) | join('a' * 99999)) | length }}",
    "a gigabyte by replacing": "{{ ('a' * 99999).replace('a', 'b' * 99999) | length }}",
    "long output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "a range too long": "{% for i in range(10**9) %}{% endfor %}",
    "no end": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 2 ** (10 ** 9) }}",
    "a list of itself": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a changed message": "{{ messages.append(1) }}",
    "another file": "{% include 'x' %}",
    "no Jinja": "{% if",
    "division by zero": "{{ 1 / 0 }}",
}


class TestHostileTemplates:
    @pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
    def test_it_fails_within_bounds_and_the_next_render_works(
        self, source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A minute is granted, so that a busy machine fails nothing; unbounded these run for hours."""
        begin = time.monotonic()
        with monkeypatch.context() as hurried:
            hurried.setattr("npu.chat_template.SECONDS", 1.0)
            with pytest.raises(TemplateFailed):
                render(source, USER)
        assert time.monotonic() - begin < 60
        assert render(CHATML, USER, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"

    def test_a_broken_template_is_known_before_it_is_used(self) -> None:
        with pytest.raises(TemplateFailed, match="line 2"):
            ChatTemplate("fine\n{% if").check()
        ChatTemplate(CHATML).check()

    def test_what_is_no_json_is_refused(self) -> None:
        with pytest.raises(TemplateFailed, match="set"):
            render(CHATML, {"role": "user", "content": {1, 2}})


GREEDY = "{{ 'a' * 10**9 if messages[0].content == 'greedy' }}ok"


class Resting:
    """One rendering process, with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.child = _Child(lambda: self.now)

    def render(self, content: str, source: str = GREEDY) -> str:
        return self.child.render(source, source, {"messages": [{"content": content}]})

    def breaks(self, words: str, without: str = "\x00") -> None:
        with pytest.raises(TemplateFailed, match=words) as failed:
            self.render("greedy")
        assert without not in str(failed.value)


class TestRest:
    """A template that breaks its bounds again and again, while others wait for the same process."""

    @pytest.fixture
    def resting(self) -> Iterator[Resting]:
        resting = Resting()
        yield resting
        resting.child._kill()

    def test_after_two_in_a_row_it_fails_at_once_and_is_tried_again_after_a_minute(self, resting: Resting) -> None:
        for _ in range(2):
            resting.breaks("needed more memory", without="again")
        with resting.child._lock:  # Nobody waits for the process, which another template may have just now.
            resting.now += 59
            resting.breaks("needed more memory.* 2 times in a row; it is tried again in 1 s")
            with pytest.raises(TemplateFailed, match="tried again"):
                resting.child.compile(GREEDY, GREEDY)
        resting.now += 1
        assert resting.render("fine") == "ok"
        resting.breaks("needed more memory", without="again")
        assert resting.render("fine") == "ok"

    def test_tried_again_in_vain_it_rests_anew(self, resting: Resting) -> None:
        for _ in range(2):
            resting.breaks("memory")
        resting.now += 60
        resting.breaks("memory", without="again")
        resting.breaks("3 times in a row; it is tried again in 60 s")

    def test_one_absurd_prompt_keeps_nobody_from_rendering(self, resting: Resting) -> None:
        for _ in range(3):
            resting.breaks("memory", without="again")
            assert resting.render("fine") == "ok"

    def test_a_break_of_time_counts_too(self, resting: Resting, monkeypatch: pytest.MonkeyPatch) -> None:
        endless = HOSTILE["no end"]
        assert resting.render("fine", "a") == "a"
        with monkeypatch.context() as hurried:
            hurried.setattr("npu.chat_template.SECONDS", 0.3)
            for words in ("did not end", "did not end", "did not end.*tried again in 60 s"):
                with pytest.raises(TemplateFailed, match=words):
                    resting.render("", endless)
        assert resting.render("fine", "a") == "a"

    def test_a_refusal_is_no_break(self, resting: Resting) -> None:
        for _ in range(3):
            with pytest.raises(TemplateFailed, match=r"refused the messages: no$"):
                resting.render("", "{{ raise_exception('no') }}")


def test_the_process_knows_no_settings_of_ours() -> None:
    script = (
        "from npu.chat_template import ChatTemplate, _CHILD; import psutil\n"
        "assert ChatTemplate('{{ strftime_now(\"%H\") }}').render([]).isdigit()\n"
        "print(sorted(psutil.Process(_CHILD._process.pid).environ().items()))"
    )
    secret = {**os.environ, "ROCKCHIPLLAMA_API_KEYS": "secret", "TZ": "Asia/Kolkata"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=True, env=secret, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "secret" not in done.stdout and "ROCKCHIPLLAMA" not in done.stdout
    assert "('TZ', 'Asia/Kolkata')" in done.stdout


class TestAnywhere:
    def test_from_many_threads_each_gets_its_own(self) -> None:
        results: dict[int, str] = {}

        def work(number: int) -> None:
            for _ in range(20):
                results[number] = render("{{ messages[0].content }}", {"role": "user", "content": str(number)})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == {number: str(number) for number in range(8)}

    def test_more_templates_than_the_process_keeps(self) -> None:
        templates = [ChatTemplate(f"{number}{{{{ x }}}}") for number in range(40)]
        for _ in range(2):
            assert [template.render([], x="!") for template in templates] == [f"{number}!" for number in range(40)]

    def test_after_a_fork_both_sides_render(self) -> None:
        render(CHATML, USER)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writer, render("{{ messages[0].content }}", USER).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"Hi"
        os.waitpid(child, 0)
        assert render("{{ messages[0].content }}", USER) == "Hi"

    def test_a_process_that_died_meanwhile_is_replaced(self) -> None:
        render(CHATML, USER)
        child = psutil.Process(rendering_process())
        child.kill()
        child.wait(60)
        assert render("{{ messages[0].content }}", USER) == "Hi"

    def test_it_leaves_with_the_process_it_serves(self) -> None:
        """Also when that one is killed and can say nothing."""
        script = (
            "import os; from npu.chat_template import ChatTemplate, _CHILD\n"
            "ChatTemplate('x').render([]); print(_CHILD._process.pid, flush=True); os.kill(os.getpid(), 9)"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=root
        )
        wait_until_gone(int(done.stdout))


def rendering_process() -> int:
    process = _CHILD._process
    assert process is not None
    return process.pid
