"""What is wrong with a value that a client sent, in words for whoever wrote it."""

from __future__ import annotations

from pydantic_core import ErrorDetails

SENTENCES = {
    "missing": "it is missing",
    "extra_forbidden": "nothing of that name belongs there",
    "string_type": "it should be a string",
    "bool_type": "it should be true or false",
    "bool_parsing": "it should be true or false",
    "int_type": "it should be a whole number",
    "int_from_float": "it should be a whole number",
    "int_parsing": "it should be a whole number",
    "float_type": "it should be a number",
    "float_parsing": "it should be a number",
    "list_type": "it should be a list",
    "tuple_type": "it should be a list",
    "dict_type": "it should be an object",
    "model_type": "it should be an object",
    "literal_error": "it should be one of {expected}",
    "greater_than_equal": "it should be at least {ge}",
    "greater_than": "it should be more than {gt}",
    "less_than_equal": "it should be at most {le}",
    "less_than": "it should be less than {lt}",
    "too_short": "it should have {min_length} or more items",
    "too_long": "it should have at most {max_length} items",
    "string_too_long": "it should be at most {max_length} characters long",
}
"""What is wrong with a value, by the validating library's word for it, in words that mean something to a client. Their
figures come from the same error. What is not here keeps the library's sentence."""


def fault_of(error: ErrorDetails) -> str:
    """What goes on after the value's name and a colon, without a point."""
    # A bound of a fraction may be a whole number, and reads better as one.
    figures = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in (error.get("ctx") or {}).items()
    }
    sentence = SENTENCES.get(error["type"], "").format(**figures) or error["msg"].removeprefix("Value error, ")[:300]
    return sentence[:1].lower() + sentence[1:].rstrip(".")
