"""Which files of a data set may be read."""

from __future__ import annotations

import os

import pytest

from kinema.data import containment as module
from kinema.data.containment import ABSENT, ODD, OUTSIDE, Inside, identity
from kinema.data.listing import scan
from kinema.schema import BadRequest


@pytest.fixture
def places(tmp_path):
    """A data set, and a folder next to it that it must not reach."""
    root, outside = tmp_path / "set", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "a.mp4").write_bytes(b"a")
    (outside / "secret.mp4").write_bytes(b"s")
    (outside / "secret.txt").write_text("a secret")
    return root, outside


def found(root, **options):
    return {e.name: e.captions for e in scan(root, **options).entries}


def test_links_out_of_the_folder_are_read_only_with_follow_links(places):
    root, outside = places
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "inner.mp4").symlink_to(root / "a.mp4")
    assert Inside(root).fault(root / "link.mp4") == OUTSIDE
    assert Inside(root).fault(root / "inner.mp4") is None
    assert Inside(root, follow_links=True).fault(root / "link.mp4") is None


def test_a_folder_that_shares_the_name_prefix_is_outside(places):
    root, _ = places
    other = root.with_name("set-2")
    other.mkdir()
    (other / "b.mp4").write_bytes(b"b")
    (root / "b.mp4").symlink_to(other / "b.mp4")
    assert Inside(root).fault(root / "b.mp4") == OUTSIDE


@pytest.mark.parametrize("follow_links", [False, True])
def test_only_regular_files_are_read(places, follow_links):
    root, _ = places
    os.mkfifo(root / "pipe.mp4")
    (root / "zero.mp4").symlink_to("/dev/zero")
    (root / "round.mp4").symlink_to("round.mp4")
    inside = Inside(root, follow_links=follow_links)
    assert [inside.fault(root / n) for n in ("pipe.mp4", "zero.mp4", "round.mp4")] == [ODD, ODD, ABSENT]
    assert inside.fault(root / "no\0name") == ABSENT


@pytest.mark.parametrize("kind", ["clip", "caption", "folder", "list", "frame", "listed", "videos"])
def test_no_part_of_a_data_set_leads_out_of_it_and_links_are_reported(places, kind):
    root, outside = places
    (root / "b.mp4").write_bytes(b"b")
    if kind == "clip":
        (root / "link.mp4").symlink_to(outside / "secret.mp4")
    elif kind == "caption":
        (root / "b.txt").symlink_to(outside / "secret.txt")
    elif kind == "folder":
        (root / "link").symlink_to(outside)
    elif kind == "list":
        (root / "sub").mkdir()
        (root / "sub" / "link.mp4").write_bytes(b"c")
        (outside / "list.jsonl").write_text('{"file_name": "link.mp4", "text": "a secret"}')
        (root / "sub" / "metadata.jsonl").symlink_to(outside / "list.jsonl")
    elif kind == "frame":
        (root / "walk").mkdir()
        (root / "walk" / "1.png").write_bytes(b"1")
        (root / "walk" / "2.png").symlink_to(outside / "secret.mp4")
    else:
        below = root / "videos" if kind == "videos" else root
        below.mkdir(exist_ok=True)
        (below / "link.mp4").symlink_to(outside / "secret.mp4")
        (root / "metadata.csv").write_text("file_name,text\na.mp4,x\nlink.mp4,a secret\n")
    plain, followed = scan(root), found(root, follow_links=True)
    name = {"caption": "b.txt", "frame": "walk/2.png", "list": "metadata.jsonl", "folder": "link"}.get(kind, "link.mp4")
    assert any(name in message for message in plain.skipped)
    assert {e.name for e in plain.entries} <= {"a.mp4", "b.mp4"}
    assert all("a secret" not in e.captions for e in plain.entries)
    assert set(followed) - {e.name for e in plain.entries}


def test_circular_links_end_and_every_clip_is_found_once_by_its_own_name(places):
    root, _ = places
    for name in "pq":
        (root / name).mkdir()
    (root / "p" / "to").symlink_to(root / "q")
    (root / "q" / "to").symlink_to(root / "p")
    (root / "q" / "z.mp4").write_bytes(b"z")
    (root / "0.mp4").symlink_to(root / "q" / "z.mp4")
    for follow_links in (False, True):
        assert set(found(root, follow_links=follow_links)) == {"a.mp4", "q/z.mp4"}


def test_depth_and_number_of_files_are_bounded(places, monkeypatch):
    root, _ = places
    deep = root / "1" / "2" / "3"
    deep.mkdir(parents=True)
    (deep / "x.mp4").write_bytes(b"x")
    monkeypatch.setattr("kinema.data.listing.MAX_DEPTH", 2)
    listing = scan(root)
    assert [e.name for e in listing.entries] == ["a.mp4"]
    assert "more than 2 levels deep (1/2/3)" in listing.skipped[0]
    monkeypatch.setattr(module, "MAX_FILES", 3)
    with pytest.raises(BadRequest, match="holds more than 3 files"):
        scan(root)


def test_all_names_of_a_file_have_the_same_identity(places):
    root, _ = places
    (root / "hard.mp4").hardlink_to(root / "a.mp4")
    (root / "soft.mp4").symlink_to("a.mp4")
    (root / "other.mp4").write_bytes(b"a")
    same = [identity(root / n) for n in ("a.mp4", "hard.mp4", "soft.mp4")]
    assert len(set(same)) == 1
    assert identity(root / "other.mp4") != same[0]
