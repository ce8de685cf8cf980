"""Clips of a folder by index: time, space, order, and skipped clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.data import folder as module
from kinema.data.folder import Cache, Folder
from kinema.data.playroom import sample
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip


def make(path, levels, *, size=(8, 8), hold=125, caption=None):
    """Write a gif whose frame t has grey level ``levels[t]`` (0..255), at 8 frames per second."""
    frames = [Image.fromarray(np.full((*size, 3), level, np.uint8)) for level in levels]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=hold, loop=0)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def ramp(count):
    return [10 * (t + 1) for t in range(count)]


def opened(tmp_path, **changes):
    return Folder.scan(tmp_path, **{"frames": 4, "height": 8, "width": 8, "fps": 8.0, **changes})


def levels(video_CTHW):
    """The grey level of each frame; asserts that every frame is uniform."""
    assert torch.equal(video_CTHW, video_CTHW[:, :, :1, :1].expand_as(video_CTHW))
    return (video_CTHW[0, :, 0, 0] + 1).mul(127.5).round().int().tolist()


# --------------------------------------------------------------------------------------- order


def test_each_pass_visits_every_clip_once_in_a_different_order(tmp_path):
    for i in range(7):
        make(tmp_path / f"{i}.gif", [i * 20 + t for t in range(5)], caption=f"clip {i}")
    clips = opened(tmp_path)
    passes = [[clips.clip(p * 7 + i)[1] for i in range(7)] for p in range(3)]
    assert all(sorted(names) == [f"clip {i}" for i in range(7)] for names in passes)
    assert len({tuple(names) for names in passes}) == 3
    assert clips.clip(10**9)[0].shape == (3, 4, 8, 8)


def test_a_clip_depends_only_on_seed_and_index(tmp_path):
    for i in range(3):
        make(tmp_path / f"{i}.gif", ramp(12), caption=f"clip {i}")
    one, other, third = opened(tmp_path, seed=5), opened(tmp_path, seed=5), opened(tmp_path, seed=6)
    forwards = [one.clip(i) for i in range(9)]
    backwards = [other.clip(i) for i in reversed(range(9))][::-1]
    assert all(torch.equal(a, b) and c == d for (a, c, *_), (b, d, *_) in zip(forwards, backwards, strict=True))
    assert any(not torch.equal(third.clip(i)[0], forwards[i][0]) for i in range(9))


def test_training_and_held_out_parts_are_disjoint_and_complete(tmp_path):
    for i in range(10):
        make(tmp_path / f"{i}.gif", ramp(4))
    train, held_out = opened(tmp_path).split(0.8)
    names = [{e.name for e in part.entries} for part in (train, held_out)]
    assert [len(n) for n in names] == [8, 2]
    assert len(names[0] | names[1]) == 10
    again = opened(tmp_path).split(0.8)
    assert again[0].entries == train.entries


def test_two_clips_are_split_and_a_single_clip_is_in_both_parts(tmp_path):
    make(tmp_path / "a.gif", ramp(4))
    train, held_out = opened(tmp_path).split(0.9)
    assert train.entries == held_out.entries
    assert "only one clip" in held_out.skipped[0]
    make(tmp_path / "b.gif", ramp(4))
    assert [len(part) for part in opened(tmp_path).split(0.9)] == [1, 1]


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_a_clip_listed_twice_is_in_one_part_only(tmp_path, clips):
    rows = []
    for i in range(clips):
        make(tmp_path / f"{i}.gif", ramp(4))
        rows += [f'{{"file_name": "{i}.gif", "text": "{word} {i}"}}\n' for word in ("one", "two")]
    (tmp_path / "metadata.jsonl").write_text("".join(rows))
    whole = opened(tmp_path)
    train, held_out = whole.split(0.9)
    names = [{e.name for e in part.entries} for part in (train, held_out)]
    assert len(names[0] & names[1]) == (clips == 1)
    assert {train.clip(i).caption.split()[0] for i in range(20)} == {"one", "two"}
    assert opened(tmp_path).fingerprint == whole.fingerprint


def test_the_fingerprint_depends_on_names_and_captions(tmp_path):
    make(tmp_path / "a.gif", ramp(4), caption="one")
    first = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == first
    (tmp_path / "a.txt").write_text("two")
    second = opened(tmp_path).fingerprint
    make(tmp_path / "b.gif", ramp(4))
    assert len({first, second, opened(tmp_path).fingerprint}) == 3


# ---------------------------------------------------------------------------------------- time


def test_every_start_frame_occurs(tmp_path):
    make(tmp_path / "a.gif", ramp(7))
    clips = opened(tmp_path)
    seen = {tuple(levels(clips.clip(i)[0])) for i in range(60)}
    assert seen == {tuple(ramp(7)[s : s + 4]) for s in range(4)}


def test_frameskip_takes_every_nth_source_frame(tmp_path):
    make(tmp_path / "a.gif", ramp(10), hold=40)
    clips = opened(tmp_path, fps=None, frameskip=3)
    assert {tuple(levels(clips.clip(i)[0])) for i in range(9)} == {(10, 40, 70, 100)}


def test_clips_are_resampled_by_nearest_time_stamp(tmp_path):
    make(tmp_path / "a.gif", ramp(16), hold=60)  # 16.7 frames per second, resampled to 8
    clips = opened(tmp_path, frames=7)
    expected = [ramp(16)[round(t / 8 / 0.06)] for t in range(8)]
    assert levels(clips.clip(0)[0]) in (expected[:7], expected[1:])


def test_a_short_clip_repeats_its_last_frame(tmp_path):
    make(tmp_path / "a.gif", ramp(3))
    assert levels(opened(tmp_path).clip(0)[0]) == [10, 20, 30, 30]


def test_a_clip_with_less_than_half_of_the_frames_is_skipped_and_reported(tmp_path):
    make(tmp_path / "a.gif", ramp(1))
    make(tmp_path / "b.gif", ramp(4), caption="b")
    clips = opened(tmp_path)
    assert {clips.clip(i)[1] for i in range(6)} == {"b"}
    (message,) = [s for s in clips.skipped if s.startswith("skipped a.gif")]
    assert "1 frames at 8 per second; expected 4, at least 2" in message


def test_a_very_long_clip_is_truncated_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 5)
    make(tmp_path / "a.gif", ramp(9), caption="x")
    clips = opened(tmp_path)
    assert max(max(levels(clips.clip(i)[0])) for i in range(20)) == 50
    assert clips.skipped == ["a.gif is longer than 5 frames: the rest is ignored"]


# --------------------------------------------------------------------------------------- space


def striped(path, width=24, frames=6, caption=None):
    """Write frames whose column x has brightness 10·x."""
    row = (np.arange(width) * 10).astype(np.uint8)
    path.mkdir()
    for t in range(frames):
        Image.fromarray(np.broadcast_to(row[None, :, None], (8, width, 3)).copy()).save(path / f"{t}.png")
    if caption:
        path.with_name(f"{path.name}.txt").write_text(caption)


def columns(video_CTHW):
    rows = (video_CTHW + 1).mul(127.5).round().int()
    assert (rows == rows[:1, :1, :1]).all()  # equal in all channels, frames and rows
    return (rows[0, 0, 0] // 10).tolist()


def test_centre_crops_are_the_same_for_all_frames(tmp_path):
    striped(tmp_path / "wide")
    clips = opened(tmp_path)
    assert all(columns(clips.clip(i)[0]) == list(range(8, 16)) for i in range(3))


def test_random_crops_are_the_same_for_all_frames_and_cover_all_positions(tmp_path):
    striped(tmp_path / "wide")
    clips = opened(tmp_path, crop="random")
    seen = [columns(clips.clip(i)[0]) for i in range(120)]
    assert all(c == list(range(c[0], c[0] + 8)) for c in seen)
    assert {c[0] for c in seen} == set(range(17))


def test_mirroring_is_optional_per_clip_and_skips_captions_that_name_a_side(tmp_path):
    striped(tmp_path / "wide", width=8, caption="a ball rolls")
    plain, mirrored = opened(tmp_path), opened(tmp_path, flip=True)
    assert {tuple(columns(plain.clip(i)[0])) for i in range(12)} == {tuple(range(8))}
    assert {tuple(columns(mirrored.clip(i)[0])) for i in range(12)} == {tuple(range(8)), tuple(range(8))[::-1]}
    (tmp_path / "wide.txt").write_text("a ball rolls to the Left")
    sided = opened(tmp_path, flip=True)
    assert {tuple(columns(sided.clip(i)[0])) for i in range(12)} == {tuple(range(8))}


def test_resizing_keeps_the_aspect_ratio_and_is_antialiased(tmp_path):
    """A 64×128 chequerboard of single pixels becomes uniform grey."""
    board = np.indices((64, 128)).sum(0) % 2 * 255
    (tmp_path / "board").mkdir()
    for t in range(4):
        Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "board" / f"{t}.png")
    video, *_ = opened(tmp_path).clip(0)
    assert video.shape == (3, 4, 8, 8)
    assert float(video.abs().max()) < 0.05


def test_pixels_are_float_in_minus_one_to_one(tmp_path):
    make(tmp_path / "a.gif", [0, 255, 0, 255])
    video, caption, *_ = opened(tmp_path).clip(0)
    assert (video.dtype, caption) == (torch.float32, "")
    assert video[0, :, 0, 0].tolist() == [-1, 1, -1, 1]


def test_a_playroom_mp4_round_trips(tmp_path):
    rendered = sample(3, frames=8, height=32, width=32, caption="a red ball rolls right")
    save_clip(Clip(torch.from_numpy(rendered.video_CTHW)[None], 8.0), tmp_path / "a.mp4", crf=4)
    (tmp_path / "a.txt").write_text(rendered.caption)
    video, caption, *_ = Folder.scan(tmp_path, frames=8, height=32, width=32, fps=8.0).clip(0)
    assert caption == "a red ball rolls right"
    assert float((video - torch.from_numpy(rendered.video_CTHW)).abs().mean()) < 0.05


def test_captions_are_chosen_at_random(tmp_path):
    make(tmp_path / "a.gif", ramp(4))
    (tmp_path / "videos2caption.json").write_text('[{"path": "a.gif", "cap": ["one", "two"]}]')
    clips = opened(tmp_path)
    assert {clips.clip(i)[1] for i in range(20)} == {"one", "two"}


# -------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "text"])
def test_a_corrupt_clip_is_reported_once_and_replaced(tmp_path, damage):
    for i in range(3):
        make(tmp_path / f"{i}.gif", ramp(4), caption=f"clip {i}")
    whole = (tmp_path / "1.gif").read_bytes()
    damaged = {"cut": whole[:100], "noise": b"GIF89a" + bytes(range(256)) * 4, "empty": b"", "text": b"not a clip"}
    (tmp_path / "1.gif").write_bytes(damaged[damage])
    clips = opened(tmp_path)
    served = [clips.clip(i)[1] for i in range(12)]
    assert set(served) == {"clip 0", "clip 2"}
    assert len([s for s in clips.skipped if s.startswith("skipped 1.gif")]) == 1
    # The replacement does not depend on when the damage was found.
    assert [opened(tmp_path).clip(i)[1] for i in range(12)] == served


def test_an_unexpected_decoder_error_skips_the_clip(tmp_path, monkeypatch):
    for name in "ab":
        make(tmp_path / f"{name}.gif", ramp(4), caption=name)
    read = module.read_frames

    def failing(path, *args):
        if path.name == "a.gif":
            raise ZeroDivisionError("in the decoder")
        return read(path, *args)

    monkeypatch.setattr(module, "read_frames", failing)
    clips = opened(tmp_path)
    assert {clips.clip(i)[1] for i in range(4)} == {"b"}
    assert "ZeroDivisionError: in the decoder" in clips.skipped[-1]


def test_a_folder_without_a_usable_clip_is_refused_with_reasons(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(BadRequest, match=r"0 of 1 clips are usable: .*skipped a\.mp4"):
        opened(tmp_path).clip(0)


@pytest.mark.parametrize("changes", [{"frames": 0}, {"height": 0}, {"frameskip": 0}, {"crop": "left"}], ids=str)
def test_invalid_values_are_refused(tmp_path, changes):
    make(tmp_path / "a.gif", ramp(4))
    with pytest.raises(BadRequest, match="expected"):
        opened(tmp_path, **changes)


# --------------------------------------------------------------------------------------- cache


def test_a_cached_clip_is_decoded_once(tmp_path, monkeypatch):
    make(tmp_path / "a.gif", ramp(6))
    reads = []
    read = module.read_frames
    monkeypatch.setattr(module, "read_frames", lambda path, *args: (reads.append(path), read(path, *args))[1])
    clips = opened(tmp_path)
    for i in range(5):
        clips.clip(i)
    assert len(reads) == 1


def test_the_cache_is_bounded_and_evicts_the_least_recently_used(tmp_path):
    cache, clip = Cache(most=250), torch.zeros(100, dtype=torch.uint8)
    cache.put(tmp_path / "a", clip)
    cache.put(tmp_path / "b", clip)
    assert cache.get(tmp_path / "a") is not None
    cache.put(tmp_path / "c", clip)
    assert [cache.get(tmp_path / n) is not None for n in "abc"] == [True, False, True]
    assert cache.bytes == 200
    cache.put(tmp_path / "huge", torch.zeros(300, dtype=torch.uint8))
    assert cache.bytes == 200
