"""Reads `models/<name>/manifest.toml`, strictly: what it does not understand it refuses, naming the line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from npu.answer_format import NONE, ThinkingFormat, ToolFormat
from npu.context_length import AUTO, Wanted
from npu.engine import Ability, Pooling, Sampling
from npu.engines import ENGINES, Option, engine_class
from npu.errors import ModelRefused, SamplingRefused
from npu.manifest_keys import OF_WEIGHTS
from npu.model import MOST_INSTANCES, RESERVED, SAMPLING_DEFAULTS, LoadWhen, LoraAdapter, Model, Value, is_model_id
from npu.model_name import SOCS, SUFFIXES, is_weights, parse_model_name
from npu.sampling import check_sampling
from npu.written_manifest import WrittenManifest

FILE_NAME = "manifest.toml"
MAX_CONTEXT_LENGTH = 1 << 24

SAMPLING_KEYS = tuple(
    field.name for field in fields(Sampling) if field.name not in ("seed", "logit_bias", "constraint", "logprobs")
)
"""What `[sampling]` may hold. The others belong to a request."""

MAX_SCALE = 100.0
"""Of an adapter, in both directions; useful ones are near 1."""

_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,200}")


def read_manifest(path: Path, find_base: Callable[[str], Model | None] | None = None) -> Model:
    """The model a manifest describes. Raises `ModelRefused` with the file, the key and the line to mend.

    `find_base` finds the model that it may be made from.
    """
    written = WrittenManifest(path)
    manifest = _Manifest(written)
    return manifest.derived(find_base) if "base" in written.table else manifest.model()


def has_base(path: Path) -> bool:
    """Whether a manifest describes a model that is made from another. False for one that cannot be read."""
    try:
        return "base" in WrittenManifest(path).table
    except ModelRefused:
        return False


class _Manifest:
    def __init__(self, written: WrittenManifest) -> None:
        self._written = written
        self._path = written.path
        self._folder = written.path.parent
        self._table = written.table
        self._refuse = written.refuse

    def model(self) -> Model:
        self._written.check_keys()
        weights, engine = self._weights_and_engine()
        name = parse_model_name(weights.stem if weights is not None else self._folder.name)
        model_id = self._id(name.id)
        stat = (weights or self._path).stat()
        context = self._context(name.context_length)
        adapters = self._adapters(engine)
        soc = self._table.get("soc", name.soc)
        if soc is not None and soc not in SOCS:
            raise self._refuse("soc", f"is {soc!r}: the chips known here are {', '.join(SOCS)}")
        return Model(
            id=model_id,
            engine=engine,
            folder=self._folder,
            names=self._names(model_id, name.tags, name.stem if weights is not None else ""),
            path=weights,
            context_length=context,
            made_for=name.context_length,
            family=self._table.get("family", name.family if weights is not None else ""),
            parameters=self._table.get("parameters", name.parameters),
            quantization=self._table.get("quantization", name.quantization),
            soc=soc,
            created=int(stat.st_mtime),
            size_bytes=stat.st_size if weights is not None else 0,
            sampling_defaults=self._sampling(),
            stop=tuple(self._table.get("stop", ())),
            template=self._written.text_of("chat_template"),
            cached_system_prompt=self._cached_system_prompt(engine),
            rerank_template=self._written.text_of("rerank_template"),
            fill_in_middle=self._fill_in_middle(),
            template_options=self._written.values("template_options"),
            tool_format=self._format("tool_format", tuple(ToolFormat)),
            thinking_format=self._format("thinking_format", tuple(ThinkingFormat)),
            engine_options=self._engine_options(engine),
            adapters=adapters,
            system=self._table.get("system"),
            adapter=self._adapter(adapters),
            manifest=self._path,
            abilities=self._abilities(engine),
            pooling=Pooling(self._written.one_of("pooling", self._table.get("pooling", Pooling.LAST), tuple(Pooling))),
            load=self._load(),
            instances=self._instances(),
            pin=self._table.get("pin", False),
            notes=tuple(self._table.get("notes", ())),
        )

    def derived(self, find: Callable[[str], Model | None] | None) -> Model:
        """The model that has a base: what it does not say is the base's."""
        self._written.check_keys()
        for key in OF_WEIGHTS:
            if key in self._table:
                raise self._refuse(key, "belongs to the weights, which are those of the base. Leave it out")
        base = find(self._table["base"]) if find is not None else None
        if base is None:
            raise self._refuse("base", f"is {self._table['base']!r}, and there is no such model here")
        name = parse_model_name(self._folder.name)
        model_id = self._id(name.id)
        return replace(
            base,
            id=model_id,
            names=self._names(model_id, name.tags, ""),
            context_length=self._context(base.context_length),
            created=int(self._path.stat().st_mtime),
            load=self._load(),
            instances=self._instances(),
            pin=self._table.get("pin", False),
            sampling_defaults=self._sampling(base.sampling_defaults),
            stop=tuple(self._table.get("stop", base.stop)),
            template=self._written.text_of("chat_template") or base.template,
            rerank_template=self._written.text_of("rerank_template") or base.rerank_template,
            template_options={**base.template_options, **self._written.values("template_options")},
            tool_format=self._format("tool_format", tuple(ToolFormat)) or base.tool_format,
            thinking_format=self._format("thinking_format", tuple(ThinkingFormat)) or base.thinking_format,
            engine_options={**base.engine_options, **self._engine_options(base.engine)},
            notes=(*base.notes, *self._table.get("notes", ())),
            system=self._table.get("system", base.system),
            adapter=self._adapter(base.adapters) or base.adapter,
            base=base.id,
            manifest=self._path,
        )

    def _id(self, default: str) -> str:
        model_id = self._table.get("id", default)
        if not is_model_id(model_id):
            raise self._refuse("id", f"is {model_id!r}: only lower-case letters, digits, `.`, `_` and `-` may be in it")
        if model_id in RESERVED:
            raise self._refuse("id", f"is {model_id!r}, where the API has something else. Choose another")
        return str(model_id)

    def _context(self, default: Wanted | None) -> Wanted | None:
        context: Wanted | None = self._table.get("context_length", default)
        if context is None or context == AUTO:
            return context
        if isinstance(context, str) or not 1 <= context <= MAX_CONTEXT_LENGTH:
            what = f"is {context!r}: it must be between 1 and {MAX_CONTEXT_LENGTH}, or `{AUTO}`"
            raise self._refuse("context_length", what)
        return context

    def _adapter(self, adapters: tuple[LoraAdapter, ...]) -> str | None:
        name: str | None = self._table.get("adapter")
        known = [adapter.name for adapter in adapters]
        if name is not None and name not in known:
            raise self._refuse("adapter", f"is {name!r}, and the model's adapters are: {', '.join(known) or 'none'}")
        return name

    def _weights_and_engine(self) -> tuple[Path | None, str]:
        engine = self._table.get("engine")
        if engine is not None and engine not in ENGINES:
            raise self._refuse("engine", f"is {engine!r}, which is not known. There are: {', '.join(sorted(ENGINES))}")
        if "file" in self._table:
            weights: Path | None = self._written.inside("file", self._table["file"])
        else:
            candidates = [] if engine not in (None, *SUFFIXES.values()) else self._candidates(engine)
            if len(candidates) > 1:
                names = ", ".join(candidate.name for candidate in candidates)
                raise ModelRefused(f'{self._path}: several files could be meant ({names}). Name one: `file = "…"`.')
            weights = candidates[0] if candidates else None
        if engine is None:
            engine = SUFFIXES.get(weights.suffix.lower()) if weights is not None else None
            if engine is None:
                raise ModelRefused(
                    f'{self._path}: neither an engine nor weights are named. Add `file = "…"` or `engine = "…"`.'
                )
            if engine not in ENGINES:
                raise ModelRefused(
                    f"{self._path}: no engine here can run {weights.suffix if weights else ''} files yet."
                )
        elif weights is None and engine in SUFFIXES.values():
            raise ModelRefused(
                f"{self._path}: the engine {engine} needs weights, and none lie in {self._folder}. Add the file."
            )
        return weights, engine

    def _candidates(self, engine: str | None) -> list[Path]:
        adapters = {self._folder / name for name, _ in self._adapter_files().values()}
        return sorted(
            entry
            for entry in self._folder.iterdir()
            if is_weights(entry)
            and entry not in adapters
            and (engine is None or SUFFIXES[entry.suffix.lower()] == engine)
        )

    def _adapters(self, engine: str) -> tuple[LoraAdapter, ...]:
        if "adapters" in self._table and not engine_class(engine).ADAPTERS:
            raise self._refuse("adapters", f"is nothing the engine {engine} can apply. Leave it out, or use rkllm")
        if "adapters" in self._table and Ability.TEXT not in self._abilities(engine):
            raise self._refuse("adapters", "goes with text, which is not among the model's `abilities`")
        found = []
        for name, (file, scale) in self._adapter_files().items():
            if not is_model_id(name) or name == "latest":  # which is how some clients ask for the model alone
                why = (
                    f"is {name!r}: an adapter's name is not `latest`, and of lower-case letters, digits, `.`, `_`, `-`"
                )
                raise self._refuse(name, why, "adapters")
            if not -MAX_SCALE <= scale <= MAX_SCALE:
                raise self._refuse(name, f"has the scale {scale}: it must be within ±{MAX_SCALE:g}", "adapters")
            found.append(LoraAdapter(name, self._written.inside(name, file, "adapters"), float(scale)))
        return tuple(found)

    def _adapter_files(self) -> dict[str, tuple[str, float]]:
        """The file and the scale of each adapter, as written."""
        found: dict[str, tuple[str, float]] = {}
        for name, value in self._table.get("adapters", {}).items():
            match {"scale": 1.0, **(value if isinstance(value, dict) else {"file": value})}:
                case {"file": str(file), "scale": int() | float() as scale, **rest} if not rest and scale is not True:
                    found[name] = (file, scale)
                case _:
                    what = 'must be a file, or a table such as `{ file = "poet_lora.rkllm", scale = 0.5 }`'
                    raise self._refuse(name, what, "adapters")
        return found

    def _names(self, model_id: str, tags: tuple[str, ...], stem: str) -> tuple[str, ...]:
        given: list[str] = self._table.get("names", [])
        for name in given:
            if not _NAME.fullmatch(name):
                raise self._refuse("names", f"holds {name!r}: a name has 1 to 200 characters and no blanks")
            if name.lower() in RESERVED:
                raise self._refuse("names", f"holds {name!r}, where the API has something else. Leave it out")
        names = [*(given or tags), "" if stem.lower() in RESERVED else stem]
        return tuple(name for name in dict.fromkeys(names) if name and name != model_id)

    def _sampling(
        self, defaults: Mapping[str, float | int | bool] = SAMPLING_DEFAULTS
    ) -> dict[str, float | int | bool]:
        given = self._table.get("sampling", {})
        neutral = Sampling()
        for key, value in given.items():
            if key not in SAMPLING_KEYS:
                raise self._refuse(key, f"is not a sampling field. There are: {', '.join(SAMPLING_KEYS)}", "sampling")
            expected = type(getattr(neutral, key))
            if type(value) is not expected and not (expected is float and type(value) is int):
                raise self._refuse(key, f"is {value!r}: it must be a {expected.__name__}", "sampling")
        settled = {**defaults, **given}
        try:
            check_sampling(Sampling(**settled), 0)
        except SamplingRefused as refused:
            raise self._refuse(refused.field, f"cannot be honoured: {refused.why}", "sampling") from None
        return settled

    def _cached_system_prompt(self, engine: str) -> str | None:
        if "cached_system_prompt" in self._table and not engine_class(engine).CACHES_PROMPTS:
            why = f"is nothing the engine {engine} can keep. Leave it out, or use rkllm"
            raise self._refuse("cached_system_prompt", why)
        return self._written.text_of("cached_system_prompt")

    def _fill_in_middle(self) -> tuple[str, ...] | None:
        markers: list[str] | None = self._table.get("fill_in_middle")
        if markers is None:
            return None
        if markers and (len(markers) != 3 or not all(markers)):
            raise self._refuse("fill_in_middle", "must be three strings, or none for a model that fills no gaps")
        return tuple(markers)

    def _engine_options(self, engine: str) -> dict[str, Value]:
        options: Mapping[str, Option] = engine_class(engine).OPTIONS
        values = self._written.values("engine_options")
        for name, value in values.items():
            if name not in options:
                known = ", ".join(options) or "none"
                raise self._refuse(
                    name, f"is not an option of the engine {engine}. There are: {known}", "engine_options"
                )
            option = options[name]
            whole = isinstance(option.default, int)
            if isinstance(value, (bool, str)) or (whole and not isinstance(value, int)):
                raise self._refuse(
                    name, f"is {value!r}: it must be a {'whole ' if whole else ''}number", "engine_options"
                )
            if not option.low <= value <= option.high:
                raise self._refuse(
                    name, f"is {value}: it must be between {option.low:g} and {option.high:g}", "engine_options"
                )
        return values

    def _abilities(self, engine: str) -> frozenset[Ability]:
        can = engine_class(engine).ABILITIES
        if "abilities" not in self._table:
            return frozenset(can) if engine == "echo" else frozenset({Ability.TEXT})
        given = self._table["abilities"]
        if not given:
            raise self._refuse("abilities", f"is empty. There are: {', '.join(Ability)}")
        for ability in given:
            if self._written.one_of("abilities", ability, tuple(Ability)) not in can:
                raise self._refuse("abilities", f"holds {ability!r}, which the engine {engine} cannot do")
        return frozenset(map(Ability, given))

    def _format(self, key: str, known: tuple[str, ...]) -> str | None:
        return self._written.one_of(key, self._table[key], (*known, NONE)) if key in self._table else None

    def _load(self) -> LoadWhen:
        return LoadWhen(self._written.one_of("load", self._table.get("load", LoadWhen.ON_DEMAND), tuple(LoadWhen)))

    def _instances(self) -> int:
        instances: int = self._table.get("instances", 1)
        if not 1 <= instances <= MOST_INSTANCES:
            raise self._refuse("instances", f"is {instances}: it must be between 1 and {MOST_INSTANCES}")
        return instances
