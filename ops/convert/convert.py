"""The command: `python ops/convert/convert.py RECIPE`, with the Python rkllm-toolkit is installed in."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.convert.evaluation import Measured
    from ops.convert.recipe import Recipe
    from ops.convert.source import Prepared
    from ops.convert.toolkit import Toolkit


def main(words: Sequence[str] | None = None) -> int:
    """Convert as the recipe says. Returns the exit code: 0, 1 when the toolkit failed, 2 when nothing was begun."""
    parser = argparse.ArgumentParser(prog="convert.py", description="Convert a model for a Rockchip NPU.")
    parser.add_argument("recipe", type=Path, help="the TOML file that says how")
    parser.add_argument("--source", type=Path, metavar="PATH", help="the model, instead of the one the recipe names")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="the model folder, instead of the recipe's")
    parser.add_argument("--check", action="store_true", help="check everything, and stop before the long work")
    given = parser.parse_args(words)
    from npu.errors import NpuError
    from ops.convert.evaluation import encode
    from ops.convert.recipe import read_recipe
    from ops.convert.refusal import RecipeRefused
    from ops.convert.source import prepare
    from ops.convert.toolkit import ConversionFailed, open_toolkit

    try:
        recipe = read_recipe(given.recipe, given.source, given.output)
        prepared = prepare(recipe)
        tokens = encode(recipe, prepared)
        toolkit = open_toolkit(recipe)
        toolkit.check(recipe)
    except (RecipeRefused, NpuError) as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{recipe.path.name} is in order: {recipe.source.name} for {recipe.soc.name}, rkllm-toolkit {toolkit.version}."
    )
    if given.check:
        return 0
    try:
        written = _convert(recipe, prepared, tokens, toolkit)
    except ConversionFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{written} is ready. Copy it into the models folder of a board.")
    return 0


def _convert(recipe: Recipe, prepared: Prepared, tokens: Sequence[int], toolkit: Toolkit) -> Path:
    from ops.convert.folder import draft_folder, finish, weights_name

    draft = draft_folder(recipe)
    try:
        weights = draft / weights_name(recipe, prepared.template is None)
        measured: dict[str, Measured] = {}
        if recipe.kind == "update":
            weights = _update(recipe, weights, toolkit)
        else:
            measured = _build(recipe, prepared, tokens, toolkit, draft)
            toolkit.export(recipe, weights)
        return finish(recipe, prepared, draft, weights, toolkit.version, measured)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _build(
    recipe: Recipe, prepared: Prepared, tokens: Sequence[int], toolkit: Toolkit, draft: Path
) -> dict[str, Measured]:
    from ops.convert.evaluation import measure, told

    measured: dict[str, Measured] = {}

    def look(name: str) -> None:
        measured[name] = measure(toolkit, prepared, tokens)
        for line in told(f"{name} quantization", measured[name], recipe.source):
            print(line, flush=True)

    wanted = bool(tokens or prepared.questions)
    toolkit.load(recipe)
    if wanted and recipe("evaluation", "before"):
        look("before")
    dataset = draft / "calibration.json" if prepared.calibration else None
    if dataset is not None:
        dataset.write_text(json.dumps(prepared.calibration, ensure_ascii=False), encoding="utf-8")
    toolkit.build(recipe, dataset)
    if dataset is not None:
        dataset.unlink()
    if wanted:
        look("after")
    return measured


def _update(recipe: Recipe, weights: Path, toolkit: Toolkit) -> Path:
    """Update a copy. The toolkit does not document where the result lies: it may be the same file, or a new one beside it."""
    from ops.convert.toolkit import ConversionFailed

    shutil.copyfile(recipe.source, weights)
    before = weights.read_bytes()[:4096], weights.stat().st_mtime_ns, weights.stat().st_size
    toolkit.update(weights)
    fresh = [path for path in sorted(weights.parent.iterdir()) if path != weights]
    if len(fresh) == 1 and fresh[0].suffix == ".rkllm":
        fresh[0].replace(weights)
    elif fresh or before == (weights.read_bytes()[:4096], weights.stat().st_mtime_ns, weights.stat().st_size):
        raise ConversionFailed(
            "update_rkllm reported success, but neither changed the file nor wrote one new .rkllm beside it. "
            "Look for its result in the folder this was started in."
        )
    return weights


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - it runs in the toolkit's Python, not in ours
        sys.exit("This needs Python 3.11 or 3.12, for both of which rkllm-toolkit has a wheel.")
    # This folder's own modules must not hide the toolkit's, and this project's packages come last for the same reason.
    sys.path[:] = [*sys.path[1:], str(Path(__file__).resolve().parents[2])]
    sys.exit(main())
