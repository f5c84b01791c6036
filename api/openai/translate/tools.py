"""Tools of a chat, in either of the forms OpenAI has had, in the shared vocabulary."""

from __future__ import annotations

from api.errors import invalid
from api.openai.schemas import ChatCompletionBody, ChatMessage
from api.openai.tool_schemas import AllowedToolsChoice, FunctionOffer, Named, NamedTool
from tasks.requests import Tool, ToolCall, ToolChoice

LEGACY_CALL = "call_function"
"""The id of a call that was made when calls had none; its result has none either."""


def tools_of(body: ChatCompletionBody) -> tuple[Tool, ...]:
    """What the model may call. Raises `HttpProblem` when two have one name."""
    field = "tools" if body.tools else "functions"
    offers = [tool.function for tool in body.tools] or body.functions
    names = [offer.name for offer in offers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise invalid(f"Invalid '{field}': two of them are called '{twice}'.", field)
    return tuple(map(_tool, offers))


def _tool(offer: FunctionOffer) -> Tool:
    return Tool(offer.name, offer.description, offer.parameters, strict=offer.strict)


def choice_of(body: ChatCompletionBody, tools: tuple[Tool, ...]) -> ToolChoice:
    """Whether they may, must or must not be called. Raises `HttpProblem` when it names one that is not there."""
    match body.tool_choice:
        case NamedTool(function=Named(name=name)):
            return _must(tools, "tool_choice", "required", name)
        case AllowedToolsChoice(allowed_tools=allowed):
            return _must(tools, "tool_choice", allowed.mode, *(tool.function.name for tool in allowed.tools))
        case "required":
            return _must(tools, "tool_choice", "required")
        case "none" if tools:
            return ToolChoice("none")
        case "none" | "auto":
            return ToolChoice()
    match body.function_call:
        case Named(name=name):
            return _must(tools, "function_call", "required", name)
        case "none" if tools:
            return ToolChoice("none")
    return ToolChoice()


def _must(tools: tuple[Tool, ...], field: str, mode: str, *names: str) -> ToolChoice:
    known = {tool.name for tool in tools}
    if not known:
        raise invalid(f"Invalid '{field}': there is no tool to call in the request.", field)
    if missing := next((name for name in names if name not in known), None):
        raise invalid(f"Invalid '{field}': no tool of the request is called '{missing}'.", field)
    return ToolChoice("required" if mode == "required" else "auto", names)


def legacy(body: ChatCompletionBody) -> bool:
    """Whether the client speaks of functions, as before there were tools, and is to be answered so."""
    return bool(body.functions) and not body.tools


def calls_of(message: ChatMessage) -> tuple[ToolCall, ...]:
    """The calls the model made in that turn."""
    if message.tool_calls:
        return tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
    if message.function_call is not None:
        return (ToolCall(LEGACY_CALL, message.function_call.name, message.function_call.arguments),)
    return ()
