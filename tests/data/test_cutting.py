"""Names of shots."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.data.cutting import stems
from kinema.data.listing import Entry


def named(*names):
    return stems([Entry(Path("/none") / n, n) for n in names])


def test_a_source_alone_with_its_name_gives_it_to_its_shots():
    assert named("film.mp4", "x/b.v2.mp4") == {"film.mp4": "film", "x/b.v2.mp4": "x-b.v2"}


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
def test_sources_that_a_disk_might_take_for_one_another_get_names_that_stay_apart(names):
    found = named(*names)
    assert len({stem.casefold() for stem in found.values()}) == len(names)
    assert found == dict(reversed(named(*reversed(names)).items()))  # whatever comes first
    assert all(stem.isprintable() and len(f".{stem}-000000.mp4".encode()) < 200 for stem in found.values())


def test_a_dot_in_the_name_of_a_folder_of_frames_is_no_suffix(tmp_path):
    (tmp_path / "walk.one").mkdir()
    assert stems([Entry(tmp_path / "walk.one", "walk.one")]) == {"walk.one": "walk.one"}
