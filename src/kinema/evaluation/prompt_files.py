"""Files of a user's prompts for an evaluation, which the oracle can judge: sentences of playroom's grammar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kinema import bounds
from kinema.data import lists, playroom
from kinema.schema import BadRequest

_LISTS = (".csv", ".json", ".jsonl")


def read(path: Path, count: int | None = None) -> list[str]:
    """The first ``count`` prompts of a file, by default all.

    Raises BadRequest for a file of another kind, one with too few prompts, and a prompt outside the grammar.
    """
    if not path.is_file():
        raise BadRequest(f"there is no file {bounds.printable(str(path), 200)}; expected a list of prompts")
    found = []
    for where, prompt in _prompts(path):
        if playroom.parse(prompt) is None:
            raise BadRequest(f"{where} is {bounds.quoted(prompt, 80)}, which is not in the playroom grammar")
        found.append(prompt)
    if len(found) < (count or 1):
        name = bounds.printable(path.name, 80)
        raise BadRequest(f"{name} has {len(found)} prompts; expected at least {count or 1}")
    return found[:count]


def _prompts(path: Path) -> Iterator[tuple[str, str]]:
    """Each prompt and where it is."""
    name = bounds.printable(path.name, 80)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        for number, line in enumerate(lists.text(path).split("\n"), start=1):
            if line.strip():
                yield f"{name} line {number}", " ".join(line.split())
    elif suffix in _LISTS:
        for where, row in lists.rows(path):
            named = [column for column in lists.TEXT_COLUMNS if row.get(column)]
            if len(named) > 1:
                raise BadRequest(f"{where} has prompts in {' and '.join(named)}; expected one column of prompts")
            prompts = lists.captions(where, row)
            if len(prompts) != 1:
                columns = ", ".join(lists.TEXT_COLUMNS)
                raise BadRequest(f"{where} has {len(prompts)} prompts; expected one, in a column named {columns}")
            yield where, prompts[0]
    else:
        raise BadRequest(f"{name} is no list of prompts; expected .txt, {', '.join(_LISTS)}")
