"""Captions and lists of a data set: read as text, or reported."""

from __future__ import annotations

import json

import pytest

from kinema.data import lists
from kinema.data.listing import scan
from kinema.schema import BadRequest


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    return tmp_path


def found(folder):
    return {e.name: e.captions for e in scan(folder).entries}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_and_lists_are_decoded_by_their_encoding(folder, encoding):
    (folder / "a.txt").write_bytes("ein Bär läuft 🐻".encode(encoding))
    assert found(folder)["a.mp4"] == ("ein Bär läuft 🐻",)
    row = json.dumps({"file_name": "a.mp4", "text": "ein Bär"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(row.encode(encoding))
    assert found(folder) == {"a.mp4": ("ein Bär",)}


@pytest.mark.parametrize(
    "data",
    ["ein Bär".encode("latin-1"), "ein Bär".encode("utf-16-le"), b"a\0b", b"a \x1b[31mred\x1b[0m ball", b"w " * 30_000],
    ids=["latin-1", "utf-16 without a mark", "zero byte", "escape", "too long"],
)
def test_a_clip_with_an_unusable_caption_is_skipped_and_reported(folder, data):
    (folder / "a.txt").write_bytes(data)
    listing = scan(folder)
    assert [e.name for e in listing.entries] == ["b.mp4"]
    assert "1 clip is skipped for unusable captions (a.mp4): " in listing.skipped[0]


def test_the_clips_of_a_list_that_is_not_text_are_skipped(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "c.mp4").write_bytes(b"c")
    (folder / "sub" / "metadata.csv").write_bytes("file_name,text\nc.mp4,ein Bär\n".encode("latin-1"))
    listing = scan(folder)
    assert [e.name for e in listing.entries] == ["a.mp4", "b.mp4"]
    assert listing.skipped[0].startswith(
        "the clips of sub are skipped because their list is unusable: metadata.csv is not UTF-8"
    )


@pytest.mark.parametrize(
    "caption", [3, 0, 1.5, True, False, {"en": "a"}, [["a"]], ["a", 3], "a\0b", "\ud800"], ids=repr
)
def test_a_caption_that_is_not_text_is_not_converted(folder, caption):
    rows = [{"file_name": "a.mp4", "text": caption}, {"file_name": "b.mp4", "text": "b"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    listing = scan(folder)
    assert [(e.name, e.captions) for e in listing.entries] == [("b.mp4", ("b",))]
    assert "(a.mp4): a caption in metadata.jsonl line 1 " in listing.skipped[0]


@pytest.mark.parametrize("caption", [None, "", [], [None], "  "], ids=repr)
def test_an_empty_caption_is_no_caption(folder, caption):
    (folder / "metadata.json").write_text(json.dumps([{"file_name": "a.mp4", "text": caption}]))
    assert found(folder) == {"a.mp4": ()}


def test_a_clip_listed_twice_is_one_clip_with_both_captions(folder):
    both = {"a.mp4": ("one", "two"), "b.mp4": ("b",)}
    rows = [("a.mp4", "one"), ("b.mp4", "b"), ("./a.mp4", "two"), ("a.mp4", "one")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows))
    assert found(folder) == both
    assert scan(folder).skipped == ("1 clip is listed more than once and used once, with all its captions (a.mp4)",)
    (folder / "metadata.jsonl").rename(folder / "old.txt")
    (folder / "metadata.json").write_text('{"a.mp4": "one", "b.mp4": "b", "a.mp4": "two"}')
    assert found(folder) == both
    (folder / "metadata.json").write_text('{"a.mp4": {"text": "one"}, "b.mp4": "b", "a.mp4": {"text": "two"}}')
    assert found(folder) == both


def test_a_caption_with_a_line_separator_stays_whole(folder):
    row = json.dumps({"file_name": "a.mp4", "text": "one\u2028two"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(row + "\n", encoding="utf-8")
    assert found(folder) == {"a.mp4": ("one two",)}


@pytest.mark.parametrize("mark", [";", "\t"])
def test_the_delimiter_of_a_spreadsheet_csv_is_detected(folder, mark):
    (folder / "metadata.csv").write_text(f"file_name{mark}text\r\na.mp4{mark}one, two\r\n")
    assert found(folder) == {"a.mp4": ("one, two",)}


def test_an_unquoted_caption_with_a_comma_is_reported_and_empty_cells_are_ignored(folder):
    (folder / "metadata.csv").write_text("file_name,text\na.mp4,a ball, red\nb.mp4,a ball,,\n")
    listing = scan(folder)
    assert [(e.name, e.captions) for e in listing.entries] == [("b.mp4", ("a ball",))]
    assert "metadata.csv line 2 has more cells than the header has columns" in listing.skipped[0]


def test_sizes_are_bounded(folder, monkeypatch):
    (folder / "metadata.csv").write_text("file_name,text\n" + "a.mp4,x\n" * 9)
    for name, most, message in (
        ("MAX_CELLS", 8, "8 cells"),
        ("MAX_FILES", 8, "8 rows"),
        ("MAX_LIST", 50, "bytes long"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(lists, name, most)
            with pytest.raises(BadRequest, match=message):
                scan(folder)


@pytest.mark.parametrize(
    "row", [{"file_name": 3}, {"file_name": ["a.mp4"]}, {"file_name": {"a": 1}}, {"text": "x"}], ids=repr
)
def test_a_row_without_a_path_is_reported_in_one_short_sentence(folder, row):
    (folder / "metadata.jsonl").write_text(json.dumps(row | {"x" * 3000: 1}))
    with pytest.raises(BadRequest, match="expected") as caught:
        scan(folder)
    assert len(str(caught.value)) < 400
