"""Fields of the Anthropic wire that would change an answer and cannot be honoured."""

from __future__ import annotations

from collections.abc import Mapping

from api.refusals import Refusal

REFUSED: Mapping[str, Refusal] = {
    "mcp_servers": (
        ([],),
        "This service connects to no MCP servers: connect to them in your program, and send their tools in 'tools'.",
    ),
    "container": ((), "There are no containers to run code in; leave {field} out."),
}

SERVED_TOOLS = (
    "web_search_",
    "web_fetch_",
    "code_execution_",
    "tool_search_tool_",
    "advisor_",
)
"""Beginnings of the types of tools that Anthropic's own servers run. Nobody runs them here, so the model is not told of them."""
