"""What Python declares of each family is what its table says: names, order, offsets, sizes, kinds and types."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest

from npu.rkllm.abi import FAMILIES, Abi, Mode, State
from npu.rkllm.abi.arguments import PROMPT_INPUT, TOKEN_INPUT
from tests.npu.rkllm.tables import ABIS, MODEL, family_name, releases, struct_of, table_of

SIMPLE: dict[str, Any] = {
    "int": ctypes.c_int,
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
    "void": None,
}
KINDS = {
    **dict.fromkeys("bhilq", "int"),
    **dict.fromkeys("BHILQ", "uint"),
    **dict.fromkeys("fd", "float"),
    **dict.fromkeys("zPO", "pointer"),
    "?": "bool",
}
"""What ctypes' one-letter codes stand for."""

FUNCTION: type = ctypes.CFUNCTYPE(None).__mro__[1]
"""What every C function type derives from."""

STRUCTS = [(abi, struct["name"]) for abi in ABIS for struct in table_of(abi)["structs"]]
STRUCT_IDS = [f"{family_name(abi)}-{name}" for abi, name in STRUCTS]


def kind_of(ctype: Any) -> str:
    if issubclass(ctype, ctypes.Structure):
        return "struct"
    if issubclass(ctype, ctypes.Union):
        return "union"
    if issubclass(ctype, ctypes.Array):
        return "array"
    if issubclass(ctype, (ctypes._Pointer, FUNCTION)):
        return "pointer"
    return KINDS[ctype._type_]


def declared(struct: Any, base: int = 0, nested: bool = False) -> Iterator[tuple[Any, ...]]:
    """(depth, name, kind, offset from the outermost struct, size) of each field, as ctypes lays it out."""
    anonymous = getattr(struct, "_anonymous_", ())
    for name, ctype in struct._fields_:
        place = base + getattr(struct, name).offset
        yield nested, None if name in anonymous else name, kind_of(ctype), place, ctypes.sizeof(ctype)
        if ctype.__name__.startswith("_") and kind_of(ctype) in ("struct", "union"):
            yield from declared(ctype, place, True)


def written(fields: list[dict[str, Any]], nested: bool = False) -> Iterator[tuple[Any, ...]]:
    """The same, as the table has it. An enum is an int to ctypes: four bytes, no negative value."""
    for field in fields:
        yield nested, field["name"], {"enum": "int"}.get(field["kind"], field["kind"]), *field[MODEL]
        yield from written(field.get("fields", []), True)


def ctype_of(abi: Any, name: str) -> Any:
    """The type ctypes must use for a C type of this family."""
    name = re.sub(r"^const ", "", name)
    if array := re.fullmatch(r"(\w+)\[(\d+)\]", name):
        return SIMPLE[array[1]] * int(array[2])
    if name in ("char *", "void *"):
        return {"char *": ctypes.c_char_p, "void *": ctypes.c_void_p}[name]
    if name.endswith(" *"):
        return ctypes.POINTER(ctype_of(abi, name.removesuffix(" *")))
    if name in SIMPLE:
        return SIMPLE[name]
    declared = getattr(abi, name)
    return ctypes.c_int if issubclass(declared, IntEnum) else declared


def classes(abi: Any, kind: type) -> dict[str, Any]:
    """What the family's module declares of a kind, in its order."""
    return {
        name: value
        for name, value in vars(abi).items()
        if isinstance(value, type) and issubclass(value, kind) and value.__module__ == abi.__name__ and name[0] != "_"
    }


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_structs_stand_in_the_order_of_the_header(abi: Abi) -> None:
    """All of them, and no others."""
    assert list(classes(abi, ctypes.Structure)) == [struct["name"] for struct in table_of(abi)["structs"]]


@pytest.mark.parametrize(("abi", "name"), STRUCTS, ids=STRUCT_IDS)
def test_a_struct_is_laid_out_as_the_table_says(abi: Abi, name: str) -> None:
    """Each field's name, kind, offset and size, and the size and alignment of the whole."""
    struct, table = getattr(abi, name), struct_of(abi, name)
    assert list(declared(struct)) == list(written(table["fields"]))
    assert [ctypes.sizeof(struct), ctypes.alignment(struct)] == table[MODEL]
    assert not hasattr(struct, "_pack_")


@pytest.mark.parametrize(("abi", "name"), STRUCTS, ids=STRUCT_IDS)
def test_a_field_has_the_type_the_table_says(abi: Abi, name: str) -> None:
    """Also what a pointer points at, and how a number is signed."""

    def compare(struct: Any, fields: list[dict[str, Any]]) -> None:
        for (_, ctype), field in zip(struct._fields_, fields, strict=True):
            if "fields" in field:
                compare(ctype, field["fields"])
            else:
                assert ctype is ctype_of(abi, field["type"]), field["name"]

    compare(getattr(abi, name), struct_of(abi, name)["fields"])


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_enums_have_the_values_of_the_table(abi: Abi) -> None:
    """Each in its order."""
    found = {name: {value.name: value.value for value in enum} for name, enum in classes(abi, IntEnum).items()}
    assert found == {enum["name"]: enum["values"] for enum in table_of(abi)["enums"]}
    assert all(enum["size"] == ctypes.sizeof(ctypes.c_int) for enum in table_of(abi)["enums"])


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_callbacks_have_the_types_of_the_table(abi: Abi) -> None:
    """What they return decides whether an answer reaches the library."""
    table = table_of(abi)["callbacks"]
    names = {name for name in vars(abi) if re.fullmatch(r"LLM\w+Callback", name)}
    assert names == {callback["name"] for callback in table}
    for callback in table:
        found = getattr(abi, callback["name"])
        assert found._restype_ is ctype_of(abi, callback["returns"])
        assert found._argtypes_ == tuple(ctype_of(abi, argument) for argument in callback["arguments"])


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_functions_have_the_signatures_of_the_table(abi: Abi) -> None:
    """All of them in the header's order, and no others."""
    expected = [
        (
            function["name"],
            ctype_of(abi, function["returns"]),
            tuple(ctype_of(abi, kind) for _, kind in function["arguments"]),
        )
        for function in table_of(abi)["functions"]
    ]
    assert [tuple(prototype) for prototype in abi.PROTOTYPES] == expected


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_neutral_numbers_are_those_of_the_family(abi: Any) -> None:
    """States, modes and kinds of input are passed to and fro as they are."""
    states, modes = [*abi.LLMCallState], [*abi.RKLLMInferMode]
    assert [state.name.removeprefix("RKLLM_RUN_") for state in states[:4]] == [state.name for state in State]
    assert [int(state) for state in states[:4]] == [*State]
    assert modes == [*Mode][: len(modes)] and (len(modes) == 3) == abi.CAPABILITIES.logits
    assert abi.RKLLMInferMode.RKLLM_INFER_GET_LAST_HIDDEN_LAYER == Mode.HIDDEN
    kinds = abi.RKLLMInputType
    assert (kinds.RKLLM_INPUT_PROMPT, kinds.RKLLM_INPUT_TOKEN) == (PROMPT_INPUT, TOKEN_INPUT)


def test_families_and_releases_agree() -> None:
    """Each supported release belongs to the family that says so, in the order they came out."""
    listed = releases()
    assert [release["date"] for release in listed] == sorted(release["date"] for release in listed)
    expected: dict[str, list[str]] = {}
    for release in listed:
        assert ("family" in release) == release.get("supported", True), release
        if "family" in release:
            expected.setdefault(release["family"], []).append(release["version"])
    assert {family_name(abi): [*abi.RUNTIMES] for abi in FAMILIES} == expected
    assert all(table_of(abi)["runtimes"] == [*abi.RUNTIMES] for abi in FAMILIES)
    assert [family_name(abi) for abi in FAMILIES] == [*expected]


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_capabilities_follow_from_the_table(abi: Abi) -> None:
    """What the header has no place for cannot be claimed, and what it has is not left out."""
    table, can = table_of(abi), abi.CAPABILITIES
    fields = {struct["name"]: {field["name"] for field in struct["fields"]} for struct in table["structs"]}
    functions = {function["name"]: function for function in table["functions"]}
    clear = functions.get("rkllm_clear_kv_cache", {"arguments": []})
    expected = {
        "hidden_states": "last_hidden_layer" in fields["RKLLMResult"],
        "logits": "logits" in fields["RKLLMResult"],
        "perf": "perf" in fields["RKLLMResult"],
        "adapters": "rkllm_load_lora" in functions,
        "cache_files": "prompt_cache_params" in fields["RKLLMInferParam"],
        "batches": "n_batch" in fields["RKLLMExtendParam"],
        "per_run_sampling": "sampling_params" in fields["RKLLMInferParam"],
        "per_run_max_tokens": "max_new_tokens" in fields["RKLLMInferParam"],
        "keep_history": "keep_history" in fields["RKLLMInferParam"],
        "clear_cache_arguments": len(clear["arguments"]),
        "cache_size": "rkllm_get_kv_cache_size" in functions,
        "keep_tokens": "n_keep" in fields["RKLLMParam"],
        "ignore_eos": "ignore_eos_token" in fields["RKLLMParam"],
        "chat_template": "rkllm_set_chat_template" in functions,
        "function_tools": "rkllm_set_function_tools" in functions,
        "cross_attention": "rkllm_set_cross_attn_params" in functions,
        "roles": "role" in fields["RKLLMInput"],
        "thinking_flag": "enable_thinking" in fields["RKLLMInput"],
        "embed_flash": "embed_flash" in fields["RKLLMExtendParam"],
        "cpu_choice": "enabled_cpus_mask" in fields["RKLLMExtendParam"],
        "host_tokenizer": "RKLLMCallback" in fields,
    }
    assert {name: getattr(can, name) for name in expected} == expected
    assert (len(can.answers) > 1) == (table["callbacks"][0]["returns"] == "int")
