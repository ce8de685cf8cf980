"""Names of shots."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.data.listing import Entry
from kinema.data.shot_folder import stems


def stems_of(*names):
    return stems([Entry(Path("/none") / n, n) for n in names])


def test_a_unique_source_name_is_the_prefix_of_its_shots():
    assert stems_of("film.mp4", "x/b.v2.mp4") == {"film.mp4": "film", "x/b.v2.mp4": "x-b.v2"}


@pytest.mark.parametrize(
    "names",
    [
        ("a.mp4", "a.gif"),
        ("x/b.mp4", "x-b.gif"),
        ("a.mp4", "A.mp4"),
        ("stra\u00dfe.mp4", "STRASSE.mp4"),
        ("caf\u00e9.mp4", "cafe\u0301.mp4"),
        ("a" * 250 + "1.mp4", "a" * 250 + "2.mp4"),
        ("a\n.mp4", "a\t.mp4"),
        ("a\udcff.mp4", "a\udcfe.mp4"),
        (".mp4.mp4", "mp4.gif"),
    ],
    ids=repr,
)
def test_sources_with_colliding_names_get_distinct_prefixes(names):
    found = stems_of(*names)
    assert len({stem.casefold() for stem in found.values()}) == len(names)
    assert found == dict(reversed(stems_of(*reversed(names)).items()))  # independent of the order
    assert all(stem.isprintable() and len(f".{stem}-000000.mp4".encode()) < 200 for stem in found.values())


def test_a_dot_in_a_folder_name_does_not_start_a_suffix(tmp_path):
    (tmp_path / "walk.one").mkdir()
    assert stems([Entry(tmp_path / "walk.one", "walk.one")]) == {"walk.one": "walk.one"}
