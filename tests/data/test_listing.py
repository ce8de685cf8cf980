"""Lists and layouts of captioned clips."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kinema.data.listing import scan
from kinema.schema import BadRequest


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def found(folder):
    return {e.name: e.captions for e in scan(folder).entries}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_text_file_next_to_a_clip_is_its_caption(tmp_path):
    touch(tmp_path, "b.mp4", "a.GIF", "deep/er/c.webm", "notes.md", ".hidden.mp4")
    (tmp_path / "a.txt").write_text("\ufeff  a red ball\n rolls right \n", encoding="utf-8")
    assert found(tmp_path) == {"a.GIF": ("a red ball rolls right",), "b.mp4": (), "deep/er/c.webm": ()}
    assert [e.name for e in scan(tmp_path).entries] == ["a.GIF", "b.mp4", "deep/er/c.webm"]


def test_a_folder_of_numbered_images_is_a_clip_and_other_images_are_skipped(tmp_path):
    touch(tmp_path, "walk/frame-1.png", "walk/frame-2.png", "cover.jpg", "photos/cat.png", "photos/dog.png", "v.mp4")
    (tmp_path / "walk.txt").write_text("a walk")
    listing = scan(tmp_path)
    assert {e.name: e.captions for e in listing.entries} == {"walk": ("a walk",), "v.mp4": ()}
    assert "3 images are skipped" in listing.skipped[0]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("metadata.jsonl", {"file_name": "a.mp4", "text": "one"}),
        ("metadata.jsonl", {"file_name": "a.mp4", "caption": "one"}),
        ("train.jsonl", {"video_path": "a.mp4", "caption": "one"}),
        ("videos2caption.json", {"path": "a.mp4", "cap": ["one"], "fps": 24.0, "resolution": {"width": 4}}),
        ("metadata.json", {"file_name": "a.mp4", "text": "one"}),
    ],
)
def test_json_lists_are_read(tmp_path, name, row):
    touch(tmp_path, "a.mp4", "unlisted.mp4")
    text = json.dumps(row) + "\n\n" if name.endswith("l") else json.dumps([row])
    (tmp_path / name).write_text(text)
    assert found(tmp_path) == {"a.mp4": ("one",)}


@pytest.mark.parametrize("content", [{"a.mp4": "one"}, {"a.mp4": {"caption": "one"}}])
def test_a_json_object_of_names_to_captions_is_read(tmp_path, content):
    touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    assert found(tmp_path) == {"a.mp4": ("one",)}


@pytest.mark.parametrize(
    ("name", "head"),
    [("metadata.csv", "file_name,text"), ("metadata.csv", "video,prompt"), ("data.csv", "path,text,num_frames")],
)
def test_csv_lists_are_read(tmp_path, name, head):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / name).write_text(f'{head}\na.mp4,"one, ""two""\nlines",9\nb.mp4,\n')
    assert found(tmp_path) == {"a.mp4": ('one, "two" lines',), "b.mp4": ()}


def test_videos_and_prompts_files_are_matched_line_by_line(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
    (tmp_path / "videos.txt").write_text("videos/a.mp4\nvideos/b.mp4\n")
    (tmp_path / "prompt.txt").write_text("one\ntwo\n")
    assert found(tmp_path) == {"videos/a.mp4": ("one",), "videos/b.mp4": ("two",)}
    (tmp_path / "prompt.txt").write_text("one\n")
    with pytest.raises(BadRequest, match="differ in length at line 2"):
        scan(tmp_path)


def test_a_list_next_to_a_folder_of_videos_and_lists_of_subfolders_are_read(tmp_path):
    touch(tmp_path, "one/videos/a.mp4", "two/b.mp4")
    (tmp_path / "one" / "videos2caption.json").write_text('[{"path": "a.mp4", "cap": ["x", "y"]}]')
    jsonl(tmp_path / "two" / "metadata.jsonl", {"file_name": "b.mp4", "text": "z"})
    assert found(tmp_path) == {"one/videos/a.mp4": ("x", "y"), "two/b.mp4": ("z",)}


@pytest.mark.parametrize("path", ["../out.mp4", "a/../../out.mp4", "..\\out.mp4", "/etc/hosts", "C:\\out.mp4", "."])
def test_a_path_outside_the_folder_is_refused(tmp_path, path):
    folder = tmp_path / "clips"
    touch(tmp_path, "out.mp4", "clips/a.mp4", "clips/a/x.mp4")
    jsonl(folder / "metadata.jsonl", {"file_name": "a.mp4"}, {"file_name": path})
    with pytest.raises(BadRequest, match=re.escape(f"line 2 names {path!r}, which is outside the folder")):
        scan(folder)


def test_an_absolute_path_inside_the_folder_is_accepted(tmp_path):
    touch(tmp_path, "a.mp4")
    jsonl(tmp_path / "metadata.jsonl", {"video_path": str(tmp_path.resolve() / "a.mp4"), "caption": "one"})
    assert found(tmp_path) == {"a.mp4": ("one",)}


def test_images_and_missing_clips_of_a_list_are_reported(tmp_path):
    touch(tmp_path, "a.mp4", "b.png")
    jsonl(tmp_path / "metadata.jsonl", *({"file_name": n, "text": "t"} for n in ("a.mp4", "b.png", "c.mp4", "d.mp4")))
    listing = scan(tmp_path)
    assert [e.name for e in listing.entries] == ["a.mp4"]
    assert listing.skipped == (
        "1 image is skipped: an image has no motion (b.png)",
        "2 listed clips are missing (c.mp4, d.mp4)",
    )


def test_clips_without_captions_are_counted(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "b.txt")
    assert scan(tmp_path).skipped == ("1 of 2 clips have no caption: they are trained with empty text",)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("metadata.jsonl", '{"file_name": "a.mp4"}\n{"file', "line 2 is damaged: it is not JSON"),
        ("metadata.jsonl", '["a.mp4"]', "line 1 is not a JSON object"),
        ("metadata.json", "[1]", "is not a list of objects"),
        ("metadata.json", "[" * 100_000, "is nested deeper than 48 levels"),
        ("metadata.csv", "name,words\na.mp4,b\n", "names no clip (its columns: name, words)"),
        ("metadata.csv", "file_name,text\nmissing.mp4,b\n", "1 listed clip is missing"),
    ],
)
def test_an_unusable_list_is_reported_in_one_sentence(tmp_path, name, text, sentence):
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(BadRequest, match=re.escape(sentence)):
        scan(tmp_path)


def test_a_list_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"file_name\n\xff\xfe.mp4\n")
    with pytest.raises(BadRequest, match="not UTF-8"):
        scan(tmp_path)


def test_two_lists_are_refused(tmp_path):
    touch(tmp_path, "metadata.csv", "metadata.jsonl")
    with pytest.raises(BadRequest, match="2 lists of clips"):
        scan(tmp_path)


@pytest.mark.parametrize("place", ["", "none"])
def test_a_folder_without_clips_is_refused(tmp_path, place):
    with pytest.raises(BadRequest, match="there (are no clips in|is no folder)"):
        scan(tmp_path / place)


def test_a_circular_link_is_not_followed(tmp_path):
    touch(tmp_path, "deep/a.mp4")
    (tmp_path / "deep" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert list(found(tmp_path)) == ["deep/a.mp4"]


def test_entries_hold_existing_paths(tmp_path):
    touch(tmp_path, "x/a.mp4")
    assert [e.path for e in scan(Path(tmp_path)).entries] == [tmp_path / "x" / "a.mp4"]


def test_broken_links_are_reported_in_singular_and_plural(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a ball")
    for number, text in ((1, "1 broken link is skipped"), (2, "2 broken links are skipped")):
        (tmp_path / f"lost-{number}.mp4").symlink_to(tmp_path / "nowhere")
        assert any(message.startswith(f"{text} (lost-1.mp4") for message in scan(tmp_path).skipped)
