"""Training of the pocket model: what is trained, what the losses count, and what they may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from kinema.data import playroom
from kinema.data.buckets import Buckets
from kinema.data.playroom.rendered import Rendered
from kinema.families.opensora.config import Config
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.layout import latent_grid
from kinema.families.opensora.pocket import recipe
from kinema.families.opensora.pocket.codec import PocketCodec
from kinema.families.opensora.pocket.model import PocketOpenSora
from kinema.families.opensora.pocket.reader import object_cells, without_first_frame
from kinema.schema import BadRequest
from kinema.system import Batch
from kinema.training import bucket_sources
from kinema.training.stream import Stream, draw_mask
from kinema.vae.given_pixels import encode_given

KINDS = ("nothing", "first", "ends", "prefix", "suffix", "every", "region")


def batch_of(kinds: tuple[str, ...], *, scenes: bool = True) -> Batch:
    samples = [playroom.sample(i, frames=9, height=32, width=48) for i in range(len(kinds))]
    generator = torch.Generator().manual_seed(5)
    masks = [draw_mask({kind: 1.0}, (9, 32, 48), generator) for kind in kinds]
    return Batch(
        torch.stack([torch.from_numpy(sample.video_CTHW) for sample in samples]),
        [sample.caption for sample in samples],
        torch.stack(masks),
        scenes=[sample.scene if scenes else None for sample in samples],
    )


def as_trained(network: PocketOpenSora) -> PocketOpenSora:
    """The network with a codec whose statistics are not those it starts with."""
    assert isinstance(network.vae, PocketCodec)
    network.vae.variance.fill_(2)
    return network


@pytest.mark.parametrize("stage", ["codec", "flow"])
def test_a_stage_trains_the_codec_or_all_else(small: Config, stage: str) -> None:
    network = PocketOpenSora(replace(small, stage=stage))  # type: ignore[arg-type]
    trained = {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == ({"vae"} if stage == "codec" else {"transformer", "words", "reader"})


@pytest.mark.parametrize("stage", ["codec", "flow"])
def test_both_stages_are_trained_in_buckets(small: Config, stage: str) -> None:
    config = replace(small, stage=stage)  # type: ignore[arg-type]
    network, lattice = as_trained(PocketOpenSora(config)), FAMILY.sampling.lattice(config)
    rows = {"32px": {"1": [0.5, 3], "5": [0.5, 1]}, "48px": {"9": [0.5, 2]}}
    buckets = Buckets.of(rows, lattice, "buckets.json", "opensora/pocket")
    source = bucket_sources.rendered(Rendered(9, 32, 48), buckets)
    stream, seen = Stream(source, FAMILY.training.settings(config), 1), set()
    for step in range(9):
        batch = stream.at(step)
        loss = FAMILY.training.loss(network, config, batch, torch.Generator().manual_seed(step))
        assert loss.shape == (len(batch.captions),)
        assert bool(loss.isfinite().all())
        seen.add((len(loss), batch.video.shape[2]))
    assert seen == {(3, 1), (1, 5), (2, 9)}


@pytest.mark.parametrize("stage", ["codec", "flow"])
@pytest.mark.parametrize("scenes", [True, False])
def test_every_trained_weight_gets_a_gradient(small: Config, stage: str, *, scenes: bool) -> None:
    config = replace(small, stage=stage)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = PocketOpenSora(config)
    with torch.no_grad():
        for parameter in network.parameters():  # layers at zero pass no gradient on
            parameter.add_(0.02 * torch.randn_like(parameter))
        as_trained(network)
    loss = FAMILY.training.loss(network, config, batch_of(KINDS, scenes=scenes), torch.Generator().manual_seed(0))
    assert loss.shape == (len(KINDS),)
    loss.sum().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("stage", ["codec", "flow"])
def test_a_split_step_has_the_losses_of_the_whole(small: Config, stage: str) -> None:
    config = replace(small, stage=stage)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network, batch = as_trained(PocketOpenSora(config)).eval(), batch_of(KINDS[:6])

    def losses(part: Batch) -> torch.Tensor:
        return FAMILY.training.loss(network, config, part, torch.Generator().manual_seed(3))

    with torch.no_grad():
        torch.testing.assert_close(torch.cat([losses(part) for part in batch.parts(3)]), losses(batch))


def test_a_split_step_moves_the_statistics_as_the_whole_does(small: Config) -> None:
    """To second order in the momentum, for parts whose clips are alike."""
    (clip,) = batch_of(KINDS[:1]).video
    batch = replace(batch_of(KINDS[:4]), video=clip.expand(4, -1, -1, -1, -1))
    moved = []
    for parts in (1, 4):
        torch.manual_seed(0)
        network = PocketOpenSora(replace(small, stage="codec")).train()
        assert isinstance(network.vae, PocketCodec)
        with torch.no_grad():
            for part in batch.parts(parts):
                recipe.codec_loss(network, part, torch.Generator().manual_seed(3))
        moved.append(1 - network.vae.variance)
    torch.testing.assert_close(moved[1], moved[0], rtol=0.02, atol=1e-4)
    assert moved[0].abs().max() > 1e-3


def test_the_codec_loss_stays_on_the_device_of_the_clips(small: Config) -> None:
    network = PocketOpenSora(replace(small, stage="codec")).to("meta").eval()
    batch = batch_of(KINDS[:2], scenes=False)
    loss = recipe.codec_loss(network, replace(batch, video=batch.video.to("meta")), torch.Generator())
    assert loss.is_meta
    assert loss.shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_in_training_is_what_sampling_gives(
    small: Config, model: PocketOpenSora, codec: PocketCodec, kind: str
) -> None:
    batch, grid = batch_of((kind,)), latent_grid(small)
    with torch.no_grad():
        shown = recipe.given(codec, grid, batch, codec.encode(batch.video))
        content, mask = encode_given(codec.encode, grid, batch.video * batch.mask, batch.mask)
    expected = torch.cat([mask, content * mask], 1)
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-5)
    assert bool(shown[:, :1].any()) == (kind != "nothing")
    assert model.vae is codec


@pytest.mark.parametrize("kind", KINDS[1:])
def test_unknown_pixels_do_not_leak_into_what_is_given(small: Config, codec: PocketCodec, kind: str) -> None:
    batch, grid = batch_of((kind,)), latent_grid(small)
    noise = torch.rand_like(batch.video) * 2 - 1
    other = replace(batch, video=batch.video * batch.mask + noise * (1 - batch.mask))
    with torch.no_grad():
        first, second = (recipe.given(codec, grid, each, codec.encode(each.video)) for each in (batch, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_the_codec_loss_of_a_perfect_codec_is_its_kl_term(small: Config, model: PocketOpenSora) -> None:
    batch = batch_of(("nothing",))

    class Perfect(torch.nn.Module):
        def raw(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
            return torch.full((1, 6, 3, 4, 6), 2.0), torch.full((1, 6, 3, 4, 6), 1.0)

        def decoder(self, z: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            return batch.video

        def update_statistics(self, mean: torch.Tensor, share: float) -> None: ...

    parts: Mapping[str, object] = {"codec": Perfect()}
    stand_in = torch.nn.Module()
    for name, value in parts.items():
        setattr(stand_in, name, value)
    loss = recipe.codec_loss(stand_in, batch, torch.Generator().manual_seed(0))
    kl = (4 + torch.tensor(1.0).exp().item() - 1 - 1) / 2
    assert loss.item() == pytest.approx(recipe.KL_WEIGHT * kl, rel=1e-5)
    assert small.stage == "flow"
    assert model.reader is not None


def test_object_cells_are_those_that_an_object_touches() -> None:
    sample = playroom.sample(3, frames=9, height=32, width=48)
    video = torch.from_numpy(sample.video_CTHW)[None]
    cells = object_cells([sample.scene], video, (4, 8, 8))
    assert cells.shape == (1, 1, 3, 4, 6)
    track = sample.scene.objects[0]
    for cell, frames in enumerate((range(1), range(1, 5), range(5, 9))):
        for frame in frames:
            x, y = track.position_T2[frame]
            if 0 <= x < 1 and 0 <= y < 1:
                assert cells[0, 0, cell, int(y * 4), int(x * 6)] == 1
    assert 0 < cells.mean() < 1


def test_the_reader_reads_from_the_second_frame_on() -> None:
    scene = playroom.sample(3, frames=9, height=32, width=48).scene
    later = without_first_frame(scene)
    assert later.objects[0].position_T2.tolist() == scene.objects[0].position_T2[1:].tolist()
    assert len(later.objects[0].opacity_T) == 8


def test_an_untrained_codec_is_refused(small: Config) -> None:
    network = PocketOpenSora(small)
    with pytest.raises(BadRequest, match=r"codec of this pocket model is untrained: train it first \(stage codec\)"):
        recipe.flow_loss(network, small, batch_of(("nothing",)), torch.Generator())
