"""Request bodies: read up to a bound, parsed strictly, refused clearly."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.body import check, parse
from api.errors import HttpProblem, Problem
from api.openai.schemas import ChatCompletionBody, CompletionBody
from api.openai.translate import chat, completions
from tasks.requests import encode_request
from tests.api.site import Site
from tests.stack import LIMIT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted(
    {*ChatCompletionBody.model_fields, *CompletionBody.model_fields, "tools", "logprobs", "response_format"}
)


def refusal(work: Callable[[], object]) -> Problem | None:
    """How `work` was refused; any other exception is the test's failure."""
    try:
        work()
    except HttpProblem as error:
        return error.problem
    return None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
@example(b"\xff\xfe{}")
@example(b'{"a":1e999}')
@example(b'{"a":NaN}')
@example(b"[" * 100_000)
@example(b'{"a":' * 50_000)
@example(b'{"a":' + b"9" * 5000 + b"}")
@example(b'{"messages":[{"role":"user","content":"\\ud800"}]}')
@example(b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}')
def test_any_bytes_are_an_object_or_a_400(data: bytes) -> None:
    """No bytes at all can make parsing fail in another way."""
    problem = refusal(lambda: parse(data))
    assert problem is None or (problem.status, problem.code) == (400, "invalid_json")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=6))
@example({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, 3]}]})
@example({"prompt": [[1], "a"]})
@example({"prompt": "x", "seed": 10**400})
@example({"prompt": "x", "logit_bias": {"٣": 1}})
def test_any_object_is_a_request_or_a_400(data: dict[str, Any]) -> None:
    """Every JSON object either becomes a request that can be stored, or is refused by name."""
    for shape, translate in ((ChatCompletionBody, chat.to_request), (CompletionBody, completions.to_request)):
        problem = refusal(lambda: encode_request(translate(check(data, shape))))  # type: ignore[operator]  # noqa: B023
        assert problem is None or problem.status == 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no body"),
        (b"   ", "no body"),
        (b"[]", "must be a JSON object, and is a list."),
        (b'"x"', "must be a JSON object, and is a string."),
        (b"1", "must be a JSON object, and is a number."),
        (b"{", "it ends too early (line 1, column 2); a bracket or a quotation mark is not closed."),
        (b'{"a":\n "x', "it ends too early (line 2, column 4)"),
        (b'{"a": 1,}', "line 1, column 9, at '}': trailing comma in object."),
        (b'{\n  "\xc3\xa4": 1\n  "b": 2\n}', "line 3, column 3, at '\"': expected ',' or '}'."),
        (b'{"\xc3\xa4" 1}', "line 1, column 6, at '1': expected ':'."),
        (b"{'a': 1}", "line 1, column 2, at ''': object keys must be strings. Strings stand in double quotes"),
        (b"prompt=x", "line 1, column 1, at 'p': invalid character."),
        (b"// x\n{}", "at '/': invalid character. JSON has no comments."),
        (
            b'{"a": "x\ny"}',
            r"line 1, column 9, at U+000A: invalid character. A line break inside a string is written \n.",
        ),
        (b'{"a": 1} xyz', "line 1, column 10, at 'x': the object has ended before it."),
        (b'{"a": tru}', "invalid character at its end (line 1, column 11)."),
        (b'{"a": NaN}', "line 1, column 7, at 'N': invalid character. JSON knows finite numbers"),
        (b'{"a": Infinity}', "line 1, column 7, at 'I': invalid character. JSON knows finite numbers"),
        (b'{"a": 1e999}', "not valid JSON: number out of range."),
        (b'{"a": "\xff"}', "is not valid UTF-8: line 1, column 8, at the byte 0xff."),
        (b'{"a": "\xed\xa0\x80"}', "is not valid UTF-8: line 1, column 8, at the byte 0xed."),
        (b'{"a": "\\ud800"}', r"line 1, column 8, at '\ud800': half of a surrogate pair."),
        (b"[" * 50_000, "nested too deeply"),
    ],
)
def test_a_bad_body_says_what_is_wrong(place: Site, body: bytes, says: str) -> None:
    """Each kind of damage has its own sentence, with the place and what was found there, in the dialect's error object."""
    reply = place.http.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert says in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


def test_a_byte_order_mark_is_skipped() -> None:
    """Some editors put one in front of a file that curl then sends."""
    assert parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_body_announced_too_large_is_refused_at_once(place: Site) -> None:
    """A Content-Length beyond the bound is answered before a byte of the body has come."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_cut_at_the_bound(place: Site) -> None:
    """A chunked body is refused as soon as it passes the bound, however much follows."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(4):
            sock.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        received = sock.recv(65536)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in received


def test_fifty_megabytes_are_refused_and_the_server_goes_on(place: Site) -> None:
    """A huge upload gets its 413, and the next request its answer."""
    reply = place.http.post("/v1/chat/completions", content=b'{"a": "' + b"x" * 50_000_000 + b'"}')
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert place.http.get("/healthz").status_code == 200


def test_a_compressed_body_is_refused_by_name(place: Site) -> None:
    """Nothing is unpacked, so no small body can become a large one."""
    reply = place.http.post("/v1/chat/completions", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_full_of_errors_is_cheap() -> None:
    """Validation stops at the first bad message instead of collecting a million complaints."""
    with pytest.raises(HttpProblem) as caught:
        check({"messages": [1] * 1_000_000}, ChatCompletionBody)
    assert caught.value.problem.param == "messages.0"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": "Hi"}, "messages", "it should be a list"),
        ({"messages": []}, "messages", "it should have 1 or more items"),
        ({"messages": ["Hi"]}, "messages.0", "it should be an object"),
        (
            {"messages": [{"role": "user", "content": 1}]},
            "messages.0.content",
            "it should be a string or a list of parts",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0", "it should be an object"),
        (
            {"messages": [{"role": "wizard", "content": "x"}]},
            "messages.0.role",
            "it should be one of 'system', 'developer', 'user', 'assistant', 'tool' or 'function'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 4097}]},
            "messages.0.content",
            "it should have at most 4096 items",
        ),
        ({"model": 1}, "model", "it should be a string"),
        ({"model": "m" * 600}, "model", "it should be at most 512 characters long"),
        ({"stream": "yes"}, "stream", "it should be true or false"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "it should be true or false"),
        ({"stream_options": []}, "stream_options", "it should be an object"),
        ({"n": 1.5}, "n", "it should be a whole number"),
        ({"n": "1"}, "n", "it should be a whole number"),
        (
            {"messages": [{"role": "user", "content": "x", "function_call": "f"}]},
            "messages.0.function_call",
            "it should be an object",
        ),
        ({"n": 0}, "n", "it should be at least 1"),
        ({"n": 9}, "n", "it should be at most 8"),
        ({"temperature": "0.5"}, "temperature", "it should be a number"),
        ({"repeat_penalty": 0}, "repeat_penalty", "it should be more than 0"),
        ({"top_k": 2**31}, "top_k", "it should be less than 2147483648"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_named_and_explained(fields: dict[str, Any], param: str, says: str) -> None:
    """In a client's words: the field by its path, and what it should be."""
    with pytest.raises(HttpProblem) as caught:
        check({"messages": [{"role": "user", "content": "x"}]} | fields, ChatCompletionBody)
    problem = caught.value.problem
    assert (problem.message, problem.param) == (f"Invalid '{param}': {says}.", param)


def test_null_means_absent_at_every_level() -> None:
    """Clients that send every field they know send null for those they do not mean."""
    body = check(
        {
            "model": None,
            "messages": [{"role": "user", "content": "x", "name": None, "tool_calls": None}],
            **dict.fromkeys(
                ["temperature", "stop", "n", "stream", "tools", "logprobs", "stream_options", "logit_bias"]
            ),
        },
        ChatCompletionBody,
    )
    assert (body.n, body.stop, body.stream, body.temperature) == (1, (), False, None)


def test_unknown_fields_are_ignored() -> None:
    """What this service has never heard of does not stop a client."""
    body = {"messages": [{"role": "user", "content": "x", "cache_control": {}}], "from_the_future": {"a": [1]}}
    assert json.loads(encode_request(chat.to_request(check(body, ChatCompletionBody))))["messages"]
