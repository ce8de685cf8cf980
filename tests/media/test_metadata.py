from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from kinema.media.metadata import read_recipe, tags
from kinema.media.read import read_video
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip

FORMATS = ["a.mp4", "a.gif", "a.webp", "a.png", "a"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_recipe_is_read_back_from_every_format(tmp_path: Path, clip: Clip, name: str) -> None:
    (written,) = save_clip(clip, tmp_path / name)
    assert read_recipe(written) == clip.recipe


@pytest.mark.parametrize("name", FORMATS)
def test_a_long_recipe_in_any_script_is_read_back(tmp_path: Path, clip: Clip, name: str) -> None:
    recipe = {"request": {"prompt": '红球 \ud800 \n\t"quoted" <&> ' + "long " * 2000}, "list": [1, 2.5, None, True]}
    (written,) = save_clip(replace(clip, recipe=recipe), tmp_path / name)
    assert read_recipe(written) == recipe


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=4), st.text())
def test_every_tag_is_text_that_any_container_can_hold(recipe: dict[str, object], prompt: str) -> None:
    for text in tags({**recipe, "request": {"prompt": prompt}}).values():
        assert "\0" not in text
        assert text.encode("utf-8").decode("utf-8") == text


def test_the_title_is_the_prompt_of_the_first_stage() -> None:
    assert tags({"stages": [{"request": {"prompt": "a red ball"}}, {"request": {}}]})["title"] == "a red ball"
    for nothing in ({}, {"stages": []}, {"stages": [7]}, {"stages": [{"request": "a red ball"}]}):
        assert tags(nothing)["title"] == "Kinema clip"


def test_a_recipe_that_is_not_json_is_refused() -> None:
    with pytest.raises(BadRequest, match="cannot be written as JSON"):
        tags({"model": object()})


def test_files_of_other_programs_have_no_recipe(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., np.ndarray]
) -> None:
    foreign = [encode(tmp_path / "a.mp4", moving(2)), encode(tmp_path / "a.mkv", moving(2))]
    for name in ("a.png", "a.gif", "a.webp", "a.jpg"):
        Image.fromarray(moving(1)[0]).save(tmp_path / name)
        foreign.append(tmp_path / name)
    Image.fromarray(moving(1)[0]).save(tmp_path / "b.gif", comment=b'{"workflow": 1}')
    (tmp_path / "text.txt").write_text("not an image")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    for path in [*foreign, tmp_path / "b.gif", tmp_path / "text.txt", tmp_path / "empty.mp4", tmp_path / "folder"]:
        with pytest.raises(BadRequest, match=f"{path.name} (has no recipe|is empty)"):
            read_recipe(path)


def test_a_missing_or_damaged_file_gives_a_one_line_error(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(BadRequest, match="no file"):
        read_recipe(tmp_path / "none.mp4")
    raw = save_clip(clip, tmp_path / "a.mp4")[0].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[:200])
    with pytest.raises(BadRequest, match=r"cut\.mp4"):
        read_recipe(tmp_path / "cut.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "recipe.json").write_text('{"kinema": "{broken"}')
    with pytest.raises(BadRequest, match="damaged"):
        read_recipe(tmp_path / "folder")


def test_a_malicious_recipe_gives_a_one_line_error(tmp_path: Path, clip: Clip) -> None:
    (path,) = save_clip(clip, tmp_path / "a.mp4")
    for text in ("[" * 5000, '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", '{"a": NaN}', '{"a":' * 60 + "1" + "}" * 60):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png", pnginfo=_png_text(text))
        with pytest.raises(BadRequest, match=r"the recipe in a\.png") as caught:
            read_recipe(tmp_path / "a.png")
        assert len(str(caught.value)) < 400
    assert read_recipe(path) == clip.recipe


def test_a_recipe_is_strict_json_and_infinity_in_an_older_one_is_read(
    tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"request": {"guidance_interval": [float("-inf"), 1.0]}}
    for name in FORMATS:
        path = save_clip(replace(clip, recipe=recipe), tmp_path / name)[0]
        assert read_recipe(path) == {"request": {"guidance_interval": [None, 1.0]}}
    monkeypatch.setattr("kinema.media.metadata.strict", lambda value: value)
    for name in FORMATS:
        assert read_recipe(save_clip(replace(clip, recipe=recipe), tmp_path / f"old-{name}")[0]) == recipe


def test_control_characters_in_a_file_name_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, pnginfo=_png_text("["))
    with pytest.raises(BadRequest) as caught:
        read_recipe(path)
    assert "\x1b" not in str(caught.value)


def _png_text(text: str) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("kinema", text)
    return chunks


def test_a_truncated_clip_gives_the_same_error_as_a_read(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., np.ndarray]
) -> None:
    path = encode(tmp_path / "a.mp4", moving(6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadRequest, match="is cut short: it ends at byte") as read:
        read_video(path)
    with pytest.raises(BadRequest) as found:
        read_recipe(path)
    assert str(found.value) == str(read.value)
