"""Python's clients against a running service: `python suite.py URL` writes a line of JSON for each client and scenario.

It runs in an environment of its own, which has these clients and nothing of this project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet what tokens cost
import litellm

URL = sys.argv[1]
CALL = '<think>Hm.</think>Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
THOUGHT = "<think>Hm, yes.</think>So it is."
TEXT = "Grüße, 世界! 👋🏽 And on."
LONG = "word " * 599 + "word"
MANY = "too long " * 4000
OBJECT = '{"city": "Köln", "people": 1087000}'


class City(BaseModel):
    """A city."""

    city: str
    people: int


@tool
def weather(city: str) -> str:
    """The weather."""
    return f"Rain in {city}."


def cancelled() -> int:
    with urlopen(f"{URL}/v1/jobs?state=cancelled") as reply:
        return len(json.load(reply)["data"])


def ended(before: int) -> None:
    """The job of an answer that was left has ended as cancelled, which no client can see: the service is asked."""
    end = time.monotonic() + 120
    while cancelled() <= before:
        assert time.monotonic() < end, "the job was not cancelled"
        time.sleep(0.1)


def langchain(
    model: Callable[[str], Any], embeddings: Callable[[], Any], thought: Callable[[Any], str | None], structured: str
) -> dict[str, Callable[[], None]]:
    """The scenarios of a chat model and its embeddings."""

    def chat() -> None:
        reply = model("echo").invoke(TEXT)
        assert reply.text == TEXT and reply.usage_metadata["output_tokens"] > 0

    def stream() -> None:
        assert "".join(part.text for part in model("echo").stream(TEXT)) == TEXT

    def tools() -> None:
        bound = model("caller").bind_tools([weather])
        said = [HumanMessage(CALL)]
        reply = bound.invoke(said)
        [call] = reply.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Köln"})
        then = bound.invoke([*said, reply, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])])
        assert "Rain in Köln." in then.text

    def schema() -> None:
        found = model("echo").with_structured_output(City, method=structured).invoke(OBJECT)
        assert isinstance(found, City)

    def thinking() -> None:
        reply = model("caller").invoke(THOUGHT)
        assert reply.text == "So it is." and thought(reply) in ("Hm, yes.", None)

    def embed() -> None:
        vectors = embeddings().embed_documents(["one", "two"])
        assert len(vectors) == 2 and len(vectors[0]) == len(embeddings().embed_query("one"))

    def cancel() -> None:
        before = cancelled()
        stream = model("slow").stream(LONG)
        next(stream), next(stream)
        stream.close()
        ended(before)

    def errors() -> None:
        with pytest.raises(Exception, match="nobody"):
            model("nobody").invoke("x")

    def long() -> None:
        assert model("echo").invoke(LONG).text == LONG

    return {f.__name__: f for f in (chat, stream, tools, schema, thinking, embed, cancel, errors, long)}


def lite(prefix: str, base: str, thinks: bool = True) -> dict[str, Callable[[], None]]:
    """The scenarios of LiteLLM, for one of the dialects that it speaks."""

    def ask(model: str, text: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return litellm.completion(f"{prefix}/{model}", messages=messages, api_base=base, api_key="unused", **more)

    def chat() -> None:
        reply = ask("echo", TEXT)
        assert reply.choices[0].message.content == TEXT and reply.usage.total_tokens > 0

    def stream() -> None:
        said = "".join(part.choices[0].delta.content or "" for part in ask("echo", TEXT, stream=True))
        assert said == TEXT

    def tools() -> None:
        function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
        reply = ask("caller", CALL, tools=[{"type": "function", "function": function}])
        [call] = reply.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Köln"}

    def schema() -> None:
        # With Anthropic's models it makes a tool of it.
        model = "caller" if prefix == "anthropic" else "echo"
        City.model_validate_json(ask(model, OBJECT, response_format=City).choices[0].message.content)

    def thinking() -> None:
        message = ask("caller", THOUGHT).choices[0].message
        assert (message.reasoning_content, message.content) == ("Hm, yes.", "So it is.")

    def embed() -> None:
        provider = "ollama" if prefix == "ollama_chat" else prefix
        more = {} if provider == "ollama" else {"encoding_format": "float"}
        reply = litellm.embedding(f"{provider}/echo", input=["one", "two"], api_base=base, api_key="unused", **more)
        assert len(reply.data) == 2

    def cancel() -> None:
        before = cancelled()
        stream = ask("slow", LONG, stream=True)
        next(iter(stream))
        stream.completion_stream.close() if hasattr(stream.completion_stream, "close") else None
        del stream
        ended(before)

    def errors() -> None:
        with pytest.raises(litellm.NotFoundError, match="nobody"):
            ask("nobody", "x", num_retries=0)

    def long() -> None:
        assert ask("echo", LONG).choices[0].message.content == LONG

    scenarios = [chat, stream, tools, schema, embed, errors, long]
    return {
        f.__name__: f
        for f in (*scenarios, *((thinking,) if thinks else ()), *((cancel,) if prefix == "openai" else ()))
    }


def llm(folder: Path, model: str) -> dict[str, Callable[[], None]]:
    """The scenarios of the command `llm`."""
    (folder / "extra-openai-models.yaml").write_text(
        "".join(
            f"- model_id: our-{name}\n  model_name: {name}\n  api_base: {URL}/v1\n  api_key_name: unused\n"
            "  supports_schema: true\n  supports_tools: true\n"
            for name in ("echo", "nobody", "slow")
        )
    )
    program = Path(sys.executable).with_name("llm")
    env = os.environ | {"LLM_USER_PATH": str(folder), "OLLAMA_HOST": URL, "OPENAI_API_KEY": "unused"}

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run([program, *words], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def chat() -> None:
        assert run("-m", model, "--no-stream", TEXT).strip() == TEXT

    def stream() -> None:
        assert run("-m", model, TEXT).strip() == TEXT

    def schema() -> None:
        City.model_validate_json(run("-m", model, "--schema", "city, people int", OBJECT))

    def errors() -> None:
        run("-m", model.replace("echo", "nobody"), "x", code=1)

    def long() -> None:
        assert run("-m", model, LONG).strip() == LONG

    return {f.__name__: f for f in (chat, stream, schema, errors, long)}


def clients(folder: Path) -> dict[tuple[str, str], dict[str, Callable[[], None]]]:
    """Every client by its name and what it is a release of."""
    openai = {"base_url": f"{URL}/v1", "api_key": "unused", "max_retries": 0}
    return {
        ("langchain-openai", "langchain-openai"): langchain(
            lambda name: ChatOpenAI(model=name, **openai),
            lambda: OpenAIEmbeddings(
                model="echo", base_url=f"{URL}/v1", api_key="unused", check_embedding_ctx_length=False
            ),
            lambda reply: None,  # it leaves thoughts out
            "json_schema",
        ),
        ("langchain-ollama", "langchain-ollama"): langchain(
            lambda name: ChatOllama(model=name, base_url=URL, reasoning=True if name == "caller" else None),
            lambda: OllamaEmbeddings(model="echo", base_url=URL),
            lambda reply: reply.additional_kwargs["reasoning_content"],
            "json_schema",
        ),
        ("LiteLLM, openai/", "litellm"): lite("openai", f"{URL}/v1"),
        ("LiteLLM, ollama_chat/", "litellm"): lite("ollama_chat", URL, thinks=False),
        ("LiteLLM, anthropic/", "litellm"): {
            name: run for name, run in lite("anthropic", URL, thinks=False).items() if name != "embed"
        },
        ("llm, an OpenAI model", "llm"): llm(folder, "our-echo"),
        ("llm, llm-ollama", "llm-ollama"): llm(folder, "ollama/echo"),
    }


def main() -> None:
    """Run every scenario."""
    with tempfile.TemporaryDirectory() as folder:
        for (client, distribution), scenarios in clients(Path(folder)).items():
            for scenario, run in scenarios.items():
                fault = None
                try:
                    run()
                except Exception:
                    fault = traceback.format_exc()[-1500:]
                line = {"client": client, "version": version(distribution), "scenario": scenario, "fault": fault}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
