"""The settings of all classes together."""

from __future__ import annotations

import ast
from collections import Counter

from ops.configuration import CLASSES, classes, declared
from tasks.settings import ROOT, Settings


def test_every_name_is_used_once() -> None:
    """One file and one prefix serve all classes, so two of one name would be one setting with two meanings."""
    assert [name for name, times in Counter(setting.name for setting in declared()).items() if times > 1] == []


def test_every_class_is_listed() -> None:
    """Else `rockchipllama settings` and the pages would be silent on it."""
    found = set()
    for package in ("api", "tasks", "npu", "ops"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(parent, ast.Name) and parent.id == Settings.__name__ for parent in node.bases
                ):
                    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                    found.add(f"{module}:{node.name}")
    assert found == set(CLASSES)


def test_every_setting_is_described() -> None:
    """In a sentence, under a heading."""
    assert [setting.name for setting in declared() if not (setting.field.description or "").endswith(".")] == []
    assert all(owner.title for owner in classes())


def test_the_example_file_has_every_setting() -> None:
    """Each as a comment, so that a copy changes nothing by itself."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    named = {line.removeprefix("#").partition("=")[0] for line in lines if line.startswith("#ROCKCHIPLLAMA_")}
    assert named == {setting.variable for setting in declared()}
