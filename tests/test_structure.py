"""Architecture rules beyond import-linter: light imports, the registry, and two users for shared blocks."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from kinema import registry

PACKAGE = Path(registry.__file__).parent
HEAVY = (
    *("torch", "numpy", "av", "PIL", "transformers", "diffusers"),
    *("matplotlib", "tensorboard", "cv2", "scipy", "tyro", "rich"),
)


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport sys\nprint('loaded:', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.rpartition("loaded:")[2].split())


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["kinema", *path.relative_to(PACKAGE).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imported_by(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, anywhere in it; ``from a import b`` counts as ``a`` and ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def test_import_kinema_loads_nothing_heavy():
    assert loaded_by("import kinema") == set()


def test_the_request_and_the_registry_load_nothing_heavy():
    assert loaded_by("import kinema; kinema.Request(prompt='x'); import kinema.registry") == set()


def test_every_module_of_the_command_line_imports_without_heavy_libraries():
    names = [name for name in modules() if name.startswith("kinema.cli")]
    assert "kinema.cli.main" in names
    assert loaded_by(f"import {', '.join(names)}") == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generat"]])
def test_help_version_and_typos_answer_without_heavy_libraries(words):
    assert loaded_by(f"from kinema.cli.main import main\nmain({words!r})") == set()


@pytest.mark.parametrize("words", [["generate", "--help"], ["train", "--help"], ["generate", "--framez", "3"]])
def test_help_of_a_command_and_unknown_options_answer_without_torch(words):
    assert "torch" not in loaded_by(f"from kinema.cli.main import main\nmain({words!r})")


def test_python_api_loads_only_what_generation_needs():
    assert loaded_by("import kinema; kinema.load").isdisjoint(
        {"av", "transformers", "diffusers", "matplotlib", "tensorboard", "cv2", "tyro"}
    )


def test_registry_equals_the_folders_under_families():
    folders = {p.name for p in (PACKAGE / "families").iterdir() if (p / "__init__.py").is_file()}
    assert set(registry.FAMILIES) == folders


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_a_family_is_where_the_registry_says_and_has_its_pages(name):
    family = registry.family(name)
    assert family.name == name
    assert "tiny" in family.presets
    for file in ("README.md", "config.py", "model.py", "recipe.py", "family.py"):
        assert (PACKAGE / "families" / name / file).is_file(), file


AWAITED: dict[str, str] = {}
"""Blocks of ``nn`` that one owner uses as yet, and why they are there already."""


def owner(module: str) -> str:
    """A family, or whatever else is directly under the package."""
    parts = module.split(".")
    return ".".join(parts[:3] if parts[1] == "families" else parts[:2])


def users_of_blocks() -> dict[str, set[str]]:
    """Each module of ``nn``, and who uses it; a block that only other blocks use has their users."""
    imports = {name: imported_by(path) for name, path in modules().items()}
    blocks = [name for name in imports if name.startswith("kinema.nn.")]

    def users(block: str) -> set[str]:
        found: set[str] = set()
        for name in (name for name, others in imports.items() if block in others and name != block):
            found |= users(name) if name in blocks else {owner(name)}
        return found

    return {block: users(block) for block in blocks}


def test_every_shared_block_has_two_users():
    """A block of ``nn`` starts in its family and moves down when a second needs it, or is about to."""
    lonely = {name: sorted(who) for name, who in users_of_blocks().items() if len(who) < 2 and name not in AWAITED}
    assert not lonely


def test_no_block_is_awaited_that_has_two_users():
    found = users_of_blocks()
    assert not [name for name in AWAITED if len(found[name]) != 1]


def test_no_circular_imports():
    """Imports inside functions and for type checkers count; only what `import kinema` gives is left out."""
    imports = {name: imported_by(path) for name, path in modules().items() if name != "kinema"}
    left = set(imports)
    while leaves := {name for name in left if not (imports[name] - {name}) & left}:
        left -= leaves
    assert not left


def test_test_folders_mirror_the_package():
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path("fuzz")}  # of all files
    assert {"nn", "families"} <= {folder.parts[0] for folder in folders if folder.parts}
    assert not [folder for folder in folders if not (PACKAGE / folder).is_dir()]


def test_registry_names_resolve_only_downward_or_into_families():
    assert all(target.startswith("kinema.families.") for target in registry.FAMILIES.values())
    assert set(registry.PIPELINES.values()) <= set(registry.FAMILIES)


def test_embedded_weights_ship_in_the_package():
    shipped = {file for _, file in registry.EMBEDDED.values()} | {f"{name}.safetensors" for name in registry.ADD_ONS}
    assert {path.name for path in (PACKAGE / "weights").iterdir()} == shipped
    for file in shipped:
        model = [f for f in shipped if f.startswith(file.removesuffix(".safetensors"))]  # with its parts
        assert sum((PACKAGE / "weights" / f).stat().st_size for f in model) <= 12 * 2**20


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_no_path_of_one_machine_is_written_into_the_package():
    texts = {str(p): p.read_text(encoding="utf-8") for p in modules().values()}
    homes = ("/home/", "/Users/", f"{Path.home()}/", f"{Path(__file__).parents[1]}/")
    assert not [path for path, text in texts.items() if any(home in text for home in homes)]


def test_meta_networks_are_built_without_torchs_compiler():
    """Its first use on the meta device takes a second: of every first clip, plan and table of models."""
    code = (
        "from kinema import registry\nfrom kinema.nn.meta import on_meta\n"
        "for name in registry.FAMILIES:\n"
        "    family = registry.family(name)\n"
        "    for config in family.presets.values():\n"
        "        with on_meta():\n"
        "            model = family.build(config)\n"
        "        assert all(t.is_meta for t in (*model.parameters(), *model.buffers())), name\n"
        "import sys\nprint('loaded:', *(m for m in ('torch._dynamo', 'sympy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not done.stdout.rpartition("loaded:")[2].split()
