"""What is known of the requests of widely used clients: which of them nobody waits for, where a clock stands in them, and which
tools nobody asked for."""

from __future__ import annotations

import re

import msgspec

from tasks.requests import ChatRequest, Request, ToolChoice

_TASK = re.compile(r"### Task:\s")
_HISTORY = "<chat_history>"
_WANTED = re.compile(r'"(?:title|tags|follow_ups)"\s*:')

_CLOCK = re.compile(
    r"(Current time is \d{1,2}:\d{2}(?::\d{2})?\. Today's date is \d{4}-\d{2}-\d{2}\.)[ \t]*\n+(?=\S)",
)


_OWN_TOOLS = frozenset(
    (
        *(
            "get_current_timestamp",
            "calculate_timestamp",
            "ask_user",
            "notify",
            "timer",
            "delegate_task",
            "execute_code",
        ),
        *("search_web", "fetch_url", "generate_image", "edit_image", "search_chats", "view_chat", "search_tools"),
        *("list_memory_paths", "read_memory_path", "search_memories", "add_memory", "update_memory", "delete_memory"),
        *("replace_memory_content", "list_memories", "search_notes", "view_note", "write_note", "replace_note_content"),
        *("search_channels", "search_channel_messages", "view_channel_message", "view_channel_thread"),
        *("list_knowledge", "list_knowledge_bases", "search_knowledge_bases", "query_knowledge_bases"),
        *("search_knowledge_files", "query_knowledge_files", "grep_knowledge_files", "view_knowledge_file"),
        *("list_chat_files", "grep_chat_files", "query_chat_files", "view_file", "view_skill", "read_skill_file"),
        *("grep_skill_files", "create_skill", "update_skill_files", "create_tasks", "update_task"),
        *("create_automation", "update_automation", "list_automations", "toggle_automation", "delete_automation"),
        *("search_calendar_events", "create_calendar_event", "update_calendar_event", "delete_calendar_event"),
    )
)
"""Those that Open WebUI 0.12 has itself; `get_current_timestamp` is always among them."""
BYTES_OF_A_TOKEN = 4
"""About so many, of the JSON that tools are described in."""


def without_own_tools(request: ChatRequest, *, calls_tools: bool, context_length: int = 0) -> ChatRequest:
    """The same without the tools that Open WebUI adds to every chat by itself, some thirty of them, where its model could do
    nothing with them: it knows no tools, or they would take more than half of its context.

    Tools of its users, among them or alone, stay, and so do all of a conversation that has called one.
    """
    names = {tool.name for tool in request.tools}
    if "get_current_timestamp" not in names or not names <= _OWN_TOOLS or request.tool_choice.mode == "required":
        return request
    if any(message.tool_calls for message in request.messages):
        return request
    size = len(msgspec.json.encode(request.tools)) / BYTES_OF_A_TOKEN
    if calls_tools and size <= context_length / 2:
        return request
    return msgspec.structs.replace(request, tools=(), tool_choice=ToolChoice())


def is_side_request(request: Request) -> bool:
    """Whether Open WebUI asks for the title, the tags or the follow-ups of a chat, which it does beside each answer.

    Known by one turn of a user that states a task, wants JSON with one of these keys, and then tells the chat.
    """
    if not isinstance(request, ChatRequest) or len(request.messages) != 1:
        return False
    [turn] = request.messages
    task, told, _ = turn.content.partition(_HISTORY)
    return bool(turn.role == "user" and told and _TASK.match(task) and _WANTED.search(task))


def clock_last(request: ChatRequest) -> ChatRequest:
    """The same with the clock at the end of its system message, where Home Assistant begins it with one.

    A prompt that begins with the seconds of the day shares nothing with the one before, and is read anew from its start.
    """
    first = request.messages[0] if request.messages else None
    clock = _CLOCK.match(first.content) if first is not None and first.role == "system" else None
    if first is None or clock is None:
        return request
    moved = msgspec.structs.replace(first, content=f"{first.content[clock.end() :].rstrip()}\n{clock[1]}")
    return msgspec.structs.replace(request, messages=(moved, *request.messages[1:]))
