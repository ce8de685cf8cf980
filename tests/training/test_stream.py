"""Batches by step, caption dropout, canvas masks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from kinema.data.clip import InOrder, TrainingClip
from kinema.data.playroom.rendered import Rendered
from kinema.system import TrainingSettings
from kinema.training.stream import Stream, draw_mask, prefetch

MIX = {"nothing": 0.4, "first": 0.3, "ends": 0.2, "region": 0.1}


class Counted(InOrder):
    """Clip i is filled with i and captioned "clip i"."""

    skipped = ()

    def clip(self, index):
        return TrainingClip(torch.full((3, 4, 8, 8), float(index)), f"clip {index}")


def settings(**changes):
    return TrainingSettings(
        steps=10, batch=2, learning_rate=1e-3, **{"text_drop": 0.0, "canvas_mix": {"nothing": 1.0}, **changes}
    )


def same(first, second):
    return (
        torch.equal(first.video, second.video)
        and torch.equal(first.mask, second.mask)
        and list(first.captions) == list(second.captions)
        and (first.images is None or torch.equal(first.images, second.images))
        and first.image_captions == second.image_captions
    )


@pytest.mark.parametrize("images", [0, 2])
def test_a_batch_depends_only_on_its_step(images):
    clips = Rendered(frames=4, height=16, width=16, seed=3)
    mixed = settings(text_drop=0.5, canvas_mix=MIX, images=images)
    forwards = [Stream(clips, mixed, 2, 3).at(step) for step in range(4)]
    again = Stream(clips, mixed, 2, 3)
    backwards = [again.at(step) for step in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not same(forwards[0], forwards[1])


def test_every_clip_is_used_once():
    stream = Stream(Counted(), settings(), 3)
    seen = [int(v[0, 0, 0, 0]) for step in range(4) for v in stream.at(step).video]
    assert seen == list(range(12))


def test_prefetched_batches_equal_direct_ones():
    stream = Stream(Counted(), settings(text_drop=0.5), 2)
    batches = list(prefetch(stream, 2, 5))
    assert len(batches) == 3
    assert all(same(batch, stream.at(step)) for step, batch in zip((2, 3, 4), batches, strict=True))
    assert list(prefetch(stream, 5, 5)) == []


def test_errors_of_the_source_are_raised_with_their_batch():
    class Broken(Counted):
        def clip(self, index):
            if index >= 4:
                raise ValueError("clip 4")
            return super().clip(index)

    batches = prefetch(Stream(Broken(), settings(), 2), 0, 4)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="clip 4"):
        next(batches)


def test_images_are_frames_of_other_clips_with_their_own_captions():
    batch = Stream(Counted(), settings(images=2), 2).at(1)
    assert batch.images.shape == (2, 2, 3, 8, 8)
    values = batch.images[:, :, 0, 0, 0].int()
    assert [[f"clip {i}" for i in row] for row in values.tolist()] == batch.image_captions
    assert set(values.flatten().tolist()).isdisjoint(batch.video[:, 0, 0, 0, 0].int().tolist())


@pytest.mark.parametrize(("drop", "low", "high"), [(0.0, 0, 0), (0.1, 0.07, 0.13), (1.0, 1, 1)])
def test_captions_are_dropped_at_the_rate_of_the_settings(drop, low, high):
    stream = Stream(Counted(), settings(text_drop=drop), 4)
    captions = [c for step in range(250) for c in stream.at(step).captions]
    assert low <= captions.count("") / len(captions) <= high


def test_canvas_kinds_occur_at_the_frequencies_of_the_mix():
    g = torch.Generator().manual_seed(0)

    def kind(mask):
        frames = mask.flatten(2).mean(-1)[0].tolist()
        kinds = {(0, 0, 0, 0): "nothing", (1, 0, 0, 0): "first", (1, 0, 0, 1): "ends"}
        return kinds.get(tuple(frames), "region")

    found = Counter(kind(draw_mask(MIX, (4, 8, 8), g)) for _ in range(3000))
    for name, share in MIX.items():
        assert found[name] / 3000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("kind", ["nothing", "first", "ends", "prefix", "suffix", "every", "region"])
def test_each_kind_of_canvas_has_its_shape(kind):
    g = torch.Generator().manual_seed(1)
    for _ in range(30):
        mask = draw_mask({kind: 1.0}, (8, 16, 16), g)
        assert mask.shape == (1, 8, 16, 16)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        frames = mask.flatten(2).mean(-1)[0]
        given = frames.nonzero().flatten().tolist()
        if kind == "region":
            assert (mask == mask[:, :1]).all()
            assert 0 < float(frames[0]) < 1
            continue
        assert set(frames.tolist()) <= {0.0, 1.0}
        assert len(given) < 8
        if kind in ("nothing", "first", "ends"):
            assert given == {"nothing": [], "first": [0], "ends": [0, 7]}[kind]
        elif kind == "prefix":
            assert given == list(range(len(given)))
            assert given
        elif kind == "suffix":
            assert given == list(range(8 - len(given), 8))
            assert given
        else:
            assert given[0] == 0
            assert len({b - a for a, b in zip(given, given[1:], strict=False)}) == 1


def test_an_unknown_kind_of_canvas_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        draw_mask({"sideways": 1.0}, (4, 8, 8), torch.Generator())


@pytest.mark.parametrize("kind", ["first", "last", "ends", "prefix", "suffix", "every"])
def test_an_image_is_never_given_whole(kind):
    g = torch.Generator().manual_seed(2)
    assert not any(draw_mask({kind: 1.0}, (1, 8, 8), g).any() for _ in range(20))
    assert draw_mask({kind: 1.0}, (3, 8, 8), g).any()


def test_regions_of_an_image_are_given():
    g = torch.Generator().manual_seed(2)
    masks = torch.stack([draw_mask({"region": 1.0}, (1, 8, 8), g) for _ in range(50)]).flatten(1).mean(1)
    assert (masks > 0).all()
    assert (masks < 1).all()
