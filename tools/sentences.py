"""Collect every sentence that `kinema` can print into one page, for reading aloud: python tools/sentences.py > page.md

A sentence is a string of the package with at least three words that is not a docstring: error messages, notes, help
texts, labels. Expressions of f-strings stay in braces. ``--help`` adds the help page of each command.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "src" / "kinema"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'-]+")


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each sentence in a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    skipped |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.discard(id(node))
        if (
            id(node) not in skipped
            and (text := _text(node))
            and text.count(" ") > 1
            and len(_WORDS.findall(re.sub(r"\{[^}]*\}", "", text))) > 2
        ):
            yield node.lineno, " ".join(text.split())


def _text(node: ast.AST) -> str:
    """What a literal says, with the expressions of an f-string in braces."""
    if isinstance(node, ast.JoinedStr):
        parts = (
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values
        )
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def helps() -> Iterator[tuple[str, str]]:
    """Each command and the help that it prints."""
    from kinema.cli import main

    for command in ("", *main.COMMANDS):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main.main([*([command] if command else []), "--help"])
        yield f"kinema {command}".strip(), printed.getvalue()


def main() -> None:
    total = 0
    for path in sorted(ROOT.rglob("*.py")):
        found = sorted(set(sentences(path)))
        total += len(found)
        if found:
            print(f"\n## {path.relative_to(ROOT.parent)}\n", *(f"- {line}: {text}" for line, text in found), sep="\n")
    if "--help" in sys.argv[1:]:
        for command, text in helps():
            print(f"\n## {command} --help\n\n```\n{text}```")
    print(f"\n{total:,} sentences", file=sys.stderr)


if __name__ == "__main__":
    main()
