"""The codecs of Open-Sora 1.x as Kinema uses them: runs of frames in closed form, frame grids, samples, memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from kinema.families.opensora.vae1x.codec import IMAGE_GRID, RunCodec, image_codec
from kinema.families.opensora.vae1x.vae12 import IMAGE_SCALE, Sizes12, VideoVAE12
from kinema.families.opensora.vae1x.vae13 import Sizes13, VideoVAE13
from kinema.memory.rehearsal import Rehearsal
from kinema.schema import Request, Shape
from kinema.system import System
from kinema.vae.kl2d import Autoencoder
from kinema.vae.tiling import decode_tiled

CODECS = pytest.mark.parametrize("version", ["vae12", "vae13"])


@pytest.fixture
def codec(version: str, request: pytest.FixtureRequest) -> RunCodec:
    return RunCodec(request.getfixturevalue(version))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and float((x - y).abs().max()) < 2e-5 * float(y.abs().max())


# ---------------------------------------------------------------------------------- runs of frames


@torch.no_grad()
def test_1_2_codes_every_17_frames_on_their_own(vae12: VideoVAE12) -> None:
    video, z = normal(1, 3, 39, 4, 6), normal(1, 3, 12, 2, 3)
    assert close(vae12.encode(video), torch.cat([vae12.encode(part) for part in video.split(17, 2)], dim=2))
    whole = [vae12.decode(z[:, :, :5], 17), vae12.decode(z[:, :, 5:10], 17), vae12.decode(z[:, :, 10:], 5)]
    assert close(vae12.decode(z, 39), torch.cat(whole, dim=2))


@torch.no_grad()
def test_the_frames_of_a_short_run_are_the_last_of_its_cells(vae12: VideoVAE12) -> None:
    z = normal(1, 3, 6, 2, 3)
    full = vae12.decode(z, 21)
    for frames in (18, 19, 20):
        short = vae12.decode(z, frames)
        assert close(short, torch.cat([full[:, :, :17], full[:, :, 38 - frames :]], dim=2))
    assert close(vae12.decode(z), full)


@torch.no_grad()
def test_a_lone_latent_frame_is_an_image_unless_it_is_said_otherwise(vae12: VideoVAE12) -> None:
    z = normal(1, 3, 1, 2, 3)
    assert [vae12.decode(z, frames).shape[2] for frames in (None, 1, 2, 4)] == [1, 1, 2, 4]
    assert close(vae12.decode(z), vae12.decode(z, 4)[:, :, -1:])


@pytest.mark.parametrize("frames", [16, 22, 0])
def test_a_number_of_frames_with_other_latents_is_refused(frames: int, vae12: VideoVAE12) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames have"):
        vae12.decode(normal(1, 3, 6, 2, 3), frames)


@torch.no_grad()
def test_1_3_codes_a_shared_frame_twice_and_averages_it(vae13: VideoVAE13) -> None:
    video = normal(1, 3, 33, 8, 16)
    z = vae13.encode(video)
    assert close(z, torch.cat([vae13.encode(video[:, :, :17]), vae13.encode(video[:, :, 16:])], dim=2))
    first, second = vae13.decode(z[:, :, :5]), vae13.decode(z[:, :, 5:])
    shared = (first[:, :, -1:] + second[:, :, :1]) / 2
    assert close(vae13.decode(z), torch.cat([first[:, :, :-1], shared, second[:, :, 1:]], dim=2))


@torch.no_grad()
def test_attention_sees_no_place_after_its_own(vae13: VideoVAE13) -> None:
    """Within a frame too: places are in the order of frames, rows and columns."""
    attention = vae13.encoder.mid.attn_1
    x, norm = normal(1, 96, 3, 2, 4), attention.norm
    attention.norm = nn.Identity()  # group norm alone sees all places
    try:
        before, x[:, :, 1, 1, 2] = attention(x), 5.0
        changed = (attention(x) - before).abs().amax(1).flatten() > 1e-6
    finally:
        attention.norm = norm
    assert changed.tolist() == [False] * 14 + [True] * 10


# -------------------------------------------------------------------------------------- the interface


@CODECS
@torch.no_grad()
def test_latents_are_as_many_as_the_grid_says(codec: RunCodec) -> None:
    time, side = codec.grid.time, codec.grid.stride[0]
    for asked in (1, 2, 9, 17, 18, 30):
        frames = time.ceil(asked)
        z = codec.encode(normal(1, 3, frames, side, 2 * side))
        assert tuple(z.shape) == codec.grid.latent(Shape(1, 3, frames, side, 2 * side)).bcthw
        assert codec.decode(z, frames=frames).shape[2] == frames


def test_the_published_grids() -> None:
    with torch.device("meta"):
        older, newer = RunCodec(VideoVAE12()).grid, RunCodec(VideoVAE13()).grid
    assert [older.time.latent(frames) for frames in (1, 17, 51, 102, 204, 408)] == [1, 5, 15, 30, 60, 120]
    assert [newer.time.latent(frames) for frames in (1, 17, 49, 113)] == [1, 5, 15, 35]
    assert (older.stride, older.channels) == (IMAGE_GRID.stride, IMAGE_GRID.channels) == ((8, 8), 4)
    assert (newer.stride, newer.channels) == ((8, 8), 16)
    assert (older.time.pads, newer.time.pads) == (True, False)


@CODECS
@torch.no_grad()
def test_clips_of_a_batch_are_coded_on_their_own(codec: RunCodec) -> None:
    video = normal(2, 3, 17, 8, 16)
    z = codec.encode(video)
    assert torch.equal(z[1:], codec.encode(video[1:]))
    assert torch.equal(codec.decode(z)[1:], codec.decode(z[1:]))


@CODECS
@torch.no_grad()
def test_latents_vary_only_if_a_generator_is_given(codec: RunCodec) -> None:
    video = normal(1, 3, 17, 8, 16)
    mode = codec.encode(video)
    one, same, other = (codec.encode(video, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(mode, codec.encode(video))
    assert torch.equal(one, same)
    assert not close(one, mode)
    assert not close(one, other)


@CODECS
@torch.no_grad()
def test_a_tile_as_large_as_the_latents_changes_nothing_and_smaller_ones_cover_them(codec: RunCodec) -> None:
    z = normal(1, 3, 5, 4, 9)
    whole = codec.decode(z)
    assert torch.equal(codec.decode(z, tile=9), whole)
    assert codec.decode(z, tile=4).shape == whole.shape
    assert not close(codec.decode(z, tile=4), whole)
    assert [option["tile"] for option in codec.leaner(15, 32, 60)] == [32, 16]


@torch.no_grad()
def test_tiles_of_1_2_are_of_images_alone(vae12: VideoVAE12) -> None:
    z, spatial = normal(1, 3, 6, 4, 9), vae12.spatial_vae
    expected = decode_tiled(spatial.decode, vae12.image_latents(z, 19), 4, 2)
    assert torch.equal(RunCodec(vae12).decode(z, frames=19, tile=4), expected)


def test_a_system_tells_a_codec_that_pads_how_many_frames_to_decode(vae12: VideoVAE12, vae13: VideoVAE13) -> None:
    for vae, frames, cells in ((vae12, 18, 6), (vae12, 3, 1), (vae13, 17, 5)):
        codec = RunCodec(vae)
        system = SimpleNamespace(codec=codec, dtype=torch.float32, lattice=SimpleNamespace(grid=codec.grid))
        with torch.no_grad():
            pixels = System.decode(
                cast(System, system), normal(1, 3, cells, 1, 2), Request(frames=frames, height=8, width=8)
            )
        assert pixels.shape[2] == frames


@CODECS
def test_gradients_reach_pixels_and_latents(codec: RunCodec) -> None:
    video = normal(1, 3, 17, 8, 16).requires_grad_()
    z = codec.encode(video)
    (into_pixels,) = torch.autograd.grad(z.square().sum(), video)
    z = z.detach().requires_grad_()
    (into_latents,) = torch.autograd.grad(codec.decode(z).square().sum(), z)
    assert into_pixels.abs().amin((0, 1, 3, 4)).shape == (17,)
    assert bool((into_pixels.abs().amax((0, 1, 3, 4)) > 0).all())
    assert bool((into_latents.abs().amax((0, 1, 3, 4)) > 0).all())


@pytest.mark.parametrize(
    ("build", "latent", "short", "long", "more"),
    [(VideoVAE12, 4, 17, 51, 1.4), (VideoVAE13, 16, 17, 49, 1.2)],
    ids=["1.2", "1.3"],
)
def test_three_times_the_frames_take_little_more_memory(  # noqa: PLR0917
    build: type[VideoVAE12] | type[VideoVAE13], latent: int, short: int, long: int, more: float
) -> None:
    """In full size, at 240×424: what grows are pixels and latents, not the maps of layers."""
    with torch.device("meta"):
        vae = build().requires_grad_(False)
        rehearsal = Rehearsal({"": vae})
        with torch.no_grad():
            for frames in (short, long):
                with rehearsal.phase(f"encode {frames}"):
                    vae.encode(torch.empty(1, 3, frames, 240, 424))
                with rehearsal.phase(f"decode {frames}"):
                    vae.decode(torch.empty(1, latent, vae.time.latent(frames), 30, 53))
    peaks = {name: phase.peak for name, phase in rehearsal.phases.items()}
    assert peaks[f"encode {long}"] < more * peaks[f"encode {short}"]
    assert peaks[f"decode {long}"] < more * peaks[f"decode {short}"]


# -------------------------------------------------------------------------------- 1.0 and 1.1


def test_the_codec_of_1_0_and_1_1_is_stable_diffusions_frame_by_frame() -> None:
    """Against diffusers' AutoencoderKL; its tolerance is 1e-5 of the largest value."""
    foreign = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 96),
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    native = Autoencoder((32, 96), 1, 4)
    native.load_state_dict(foreign.state_dict())
    codec, video = image_codec(native), normal(2, 3, 5, 8, 12)
    with torch.no_grad():
        z = codec.encode(video)
        images = video.transpose(1, 2).flatten(0, 1)
        expected = foreign.encode(images).latent_dist.mode() * 0.18215
        assert close(z, expected.unflatten(0, (2, 5)).transpose(1, 2))
        decoded = foreign.decode(expected / 0.18215).sample
        assert close(codec.decode(z), decoded.unflatten(0, (2, 5)).transpose(1, 2))


def test_published_constants() -> None:
    """1.2's image latents have Stable Diffusion's scale although the image codec is SDXL's: so it was trained."""
    assert IMAGE_SCALE == 0.18215
    assert Sizes12().shift == (-0.10, 0.34, 0.27, 0.98)
    assert Sizes12().scale == (3.85, 2.32, 2.33, 3.06)
    assert (Sizes12().run, Sizes13().window) == (17, 17)
    with torch.device("meta"):
        vae = VideoVAE12()
    assert vae.state_dict()["scale"].shape == (1, 4, 1, 1, 1)
