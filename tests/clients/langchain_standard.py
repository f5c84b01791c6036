"""LangChain's own standard tests, for its two clients of this service: `SERVICE=URL python -m pytest langchain_standard.py`.

What takes a model that understands (calling the right tool, filling a schema with what was asked) is left out: the model here
says what it is told. `suite.py` tries tools and schemas.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

URL = os.environ["SERVICE"]


class _Plain(ChatModelIntegrationTests):
    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False


class TestOpenAI(_Plain):
    """langchain-openai."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "echo", "base_url": f"{URL}/v1", "api_key": "unused", "stream_usage": True}


class TestOllama(_Plain):
    """langchain-ollama."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "echo", "base_url": URL}
