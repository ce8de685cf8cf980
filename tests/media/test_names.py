"""Any legal file name is read and written, and only regular files are opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kinema.media.containers import open_container, readable_path
from kinema.media.metadata import read_recipe
from kinema.media.read import facts, probe, read_image, read_video
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip

NAMES = [
    b"2026-11-28T16:20:05",
    b"concat:a|b",
    b"data:x,y",
    b"file:a",
    b"http:a",
    b"pipe:0",
    b"%03d of 100%",
    b"a?b=c#d",
    b"-i",
    b"two\nlines",
    b" spaced ",
    b"back\\slash",
    b"caf\xc3\xa9",
    b"not utf-8 \xff\xfe",
    b"[subfile,,start,0,end,9,,]",
]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Clip, name: bytes, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        Path(os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this disk does not allow the name")
    path = Path(os.fsdecode(name) + suffix)
    (written,) = save_clip(clip, path)
    assert written == path
    for place in (path, path.absolute()):
        assert read_video(place).video.shape == clip.video.shape
        assert probe(place).frames == facts(place)["frames"] == 6
        assert read_recipe(place) == clip.recipe


def test_a_playlist_is_not_followed(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., np.ndarray]
) -> None:
    import av

    encode(tmp_path / "a.mp4", moving(2))
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/a.mp4\n")
    with pytest.raises(BadRequest, match="not a supported video"):
        read_video(tmp_path / "list.mp4")
    with pytest.raises(av.FFmpegError), open_container(tmp_path / "list.mp4", "mov", 10_000):
        pass


def test_special_files_are_refused_without_blocking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.mp4")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("socket.png")
    Path("link.gif").symlink_to("fifo.mp4")
    for name in ("fifo.mp4", "socket.png", "link.gif", "/dev/zero", "/dev/null"):
        for reader in (read_video, read_image, probe, facts, read_recipe, lambda p: readable_path(Path(p))):
            with pytest.raises(BadRequest, match="not a regular file"):
                reader(name)
    bound.close()


def test_a_fifo_in_a_folder_of_frames_is_skipped(tmp_path: Path, clip: Clip) -> None:
    save_clip(clip, tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "frame-0001b.png")
    (tmp_path / "a" / "recipe.json").unlink()
    os.mkfifo(tmp_path / "a" / "recipe.json")
    assert read_video(tmp_path / "a").video.shape[2] == 6
