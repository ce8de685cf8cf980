"""Stored measurements of a comparison, so that the same command resumes where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import kinema
from benchmarks.vs.measure import Row
from kinema.atomic import replacing


class Progress:
    """Rows by name, saved after every pair of runs. Rows with other ``settings`` are discarded."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.rows: dict[str, Row] = {}
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if data is None:
            return
        if data["settings"] != settings:
            other = [name for name, value in settings.items() if data["settings"].get(name) != value]
            print(f"{path} was measured with other {', '.join(other)}: starting over", file=sys.stderr)
            return
        self.rows = {row["what"]: Row.from_json(row) for row in data["rows"]}

    def row(self, what: str, unit: str = "s") -> Row:
        """The row of this name, with its runs so far."""
        return self.rows.setdefault(what, Row(what, unit))

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {"settings": self.settings, "rows": [row.to_json() for row in self.rows.values()]}
        with replacing(self.path) as part:
            part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def done(self, names: Iterable[str]) -> None:
        """Drop these rows, which have been written elsewhere; the runs of other rows stay for the next command."""
        for name in names:
            self.rows.pop(name, None)
        if self.rows:
            self.save()
        else:
            self.path.unlink(missing_ok=True)


def code_hash(*scripts: Path) -> str:
    """Hash of the package, of these scripts and of further ones: results are only valid for the same code."""
    digest = sha256()
    for files in (Path(kinema.__file__).parent.rglob("*.py"), Path(__file__).parent.glob("*.py"), scripts):
        for file in sorted(files):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
