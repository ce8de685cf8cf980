"""Pocket models are configurations: a family's code imports its pocket folder only in ``kinds`` and ``family``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kinema import families, registry

FOLDERS = sorted(p.parent for p in Path(families.__file__).parent.glob("*/pocket/__init__.py"))
ALLOWED = {"kinds.py", "family.py"}
"""The modules that list the kinds of model and the presets."""
FIELDS = {"animatediff": {"config.patch"}, "svd": {"config.pocket", "config.patch"}, "opensora": {"config.pocket"}}
"""Fields of a config that only its pocket model has."""


def uses_pocket(path, fields):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(".pocket" in f"{name}." and name.startswith("kinema.families") for name in names):
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) in fields:
            return True
    return False


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.parent.name)
def test_only_kinds_and_presets_import_the_pocket(folder):
    family = folder.parent
    published = [p for p in family.rglob("*.py") if folder not in p.parents]
    assert {p.name for p in published if uses_pocket(p, FIELDS[family.name])} == ALLOWED


@pytest.mark.parametrize("name", ["animatediff", "svd"])
def test_exactly_the_pocket_presets_have_the_pocket_kind(name):
    family = registry.family(name)
    kinds = registry.resolve(f"kinema.families.{name}.kinds:kind_of")
    own = {preset for preset, config in family.presets.items() if type(kinds(config)).__name__ == "Pocket"}
    assert own == {preset for preset in family.presets if preset.startswith("pocket")}
