"""What a comparison has measured so far, on disk, so that the same command goes on where it was stopped."""

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


class Kept:
    """Rows by name, saved after every pair of runs. Rows of other ``settings`` are not continued."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.rows: dict[str, Row] = {}
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if told is None:
            return
        if told["settings"] != settings:
            other = [name for name, value in settings.items() if told["settings"].get(name) != value]
            print(f"{path} is of other {', '.join(other)}: beginning again", file=sys.stderr)
            return
        self.rows = {row["what"]: Row.from_json(row) for row in told["rows"]}

    def row(self, what: str, unit: str = "s") -> Row:
        """The row of this name, with the runs it has."""
        return self.rows.setdefault(what, Row(what, unit))

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = {"settings": self.settings, "rows": [row.to_json() for row in self.rows.values()]}
        with replacing(self.path) as part:
            part.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def done(self, names: Iterable[str]) -> None:
        """These rows are written elsewhere; the runs of others, which a stopped command left, stay for the next."""
        for name in names:
            self.rows.pop(name, None)
        if self.rows:
            self.save()
        else:
            self.path.unlink(missing_ok=True)


def code_hash() -> str:
    """Of the package and of these scripts: figures of other code are not this code's."""
    digest = sha256()
    for files in (Path(kinema.__file__).parent.rglob("*.py"), Path(__file__).parent.glob("*.py")):
        for file in sorted(files):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
