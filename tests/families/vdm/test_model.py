from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kinema.families.vdm.config import Config
from kinema.families.vdm.model import AttentionPool, SpatialAttention, TemporalAttention, VideoUNet

FRAMES = 5
Lively = Callable[..., VideoUNet]

RECORDED = [-0.019724454438, 0.232436893963, -0.308988841234, -0.220982438436, -0.234935008172]


def noisy(frames: int = FRAMES, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, frames, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(*log_snr: float) -> Tensor:
    return torch.tensor(log_snr or (0.5,), dtype=torch.float64)


def moved(z_BCTHW: Tensor, frame: int) -> Tensor:
    other = z_BCTHW.clone()
    other[:, :, frame] += noisy(1, len(z_BCTHW), seed=9)[:, :, 0]
    return other


def change(model: VideoUNet, frame: int, **options: int) -> list[float]:
    """Largest absolute change of each output frame when one input frame changes."""
    z = noisy()
    with torch.no_grad():
        before, after = model(z, level(), **options), model(moved(z, frame), level(), **options)
    return (after - before).abs().amax(dim=(0, 1, 3, 4)).tolist()


@pytest.mark.parametrize("frame", range(FRAMES))
def test_independent_frames_do_not_affect_each_other(lively: Lively, frame: int) -> None:
    found = change(lively(), frame, independent=FRAMES)
    assert found[frame] > 1e-3
    assert [c for i, c in enumerate(found) if i != frame] == [0.0] * (FRAMES - 1)


@pytest.mark.parametrize("frame", range(FRAMES))
def test_appended_images_and_the_clip_do_not_affect_each_other(lively: Lively, frame: int) -> None:
    clip = 3
    found = change(lively(), frame, independent=FRAMES - clip)
    reached = [i < clip if frame < clip else i == frame for i in range(FRAMES)]
    assert [c > 1e-6 for c in found] == reached
    assert all(c == 0.0 for c, r in zip(found, reached, strict=True) if not r)


def test_frames_of_a_clip_affect_each_other(lively: Lively) -> None:
    assert min(change(lively(), 2)) > 1e-6


def test_permuting_appended_images_permutes_their_outputs(lively: Lively) -> None:
    model, z, order = lively(), noisy(6), [0, 1, 2, 5, 3, 4]
    with torch.no_grad():
        straight = model(z, level(), independent=3)
        permuted = model(z[:, :, order], level(), independent=3)
    torch.testing.assert_close(permuted, straight[:, :, order], rtol=0, atol=1e-13)


def test_an_appended_image_equals_the_image_alone(lively: Lively) -> None:
    model, z = lively(), noisy(4)
    with torch.no_grad():
        torch.testing.assert_close(
            model(z, level(), independent=1)[:, :, 3:], model(z[:, :, 3:], level()), rtol=0, atol=1e-12
        )


def test_a_static_clip_gives_equal_frames(lively: Lively) -> None:
    z = noisy(1).expand(-1, -1, FRAMES, -1, -1)
    with torch.no_grad():
        out = lively()(z, level())
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out), rtol=0, atol=1e-12)


def test_the_order_of_frames_matters(lively: Lively) -> None:
    model, z = lively(), noisy()
    with torch.no_grad():
        assert (model(z.flip(2), level()).flip(2) - model(z, level())).abs().max() > 1e-3


def test_convolutions_and_norms_never_mix_frames(lively: Lively) -> None:
    """With temporal attention zeroed, frames cannot interact."""
    model = lively()
    for module in model.modules():
        if isinstance(module, TemporalAttention):
            nn.init.zeros_(module.out.weight)
    found = change(model, 2)
    assert found[2] > 1e-3
    assert found[:2] + found[3:] == [0.0] * (FRAMES - 1)


def test_temporal_attention_follows_each_spatial_attention(lively: Lively) -> None:
    order = [type(m) for m in lively().modules() if isinstance(m, (SpatialAttention, TemporalAttention))]
    assert order[::2] == [SpatialAttention] * (len(order) // 2)
    assert order[1::2] == [TemporalAttention] * (len(order) // 2)


def test_batch_items_are_independent(lively: Lively) -> None:
    model, z = lively(), noisy(batch=2)
    cond = torch.randn(2, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        both = model(z, level(3.0, -4.0), cond)
        for i, log_snr in enumerate((3.0, -4.0)):
            alone = model(z[i : i + 1], level(log_snr), cond[i : i + 1])
            torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-12)


def test_per_clip_and_per_frame_levels_and_conditions_agree(lively: Lively) -> None:
    model, z = lively(), noisy()
    cond = torch.randn(1, 48, dtype=torch.float64)
    with torch.no_grad():
        by_clip = model(z, level(2.0), cond)
        by_frame = model(z, level(*[2.0] * FRAMES)[None], cond[:, None].expand(-1, FRAMES, -1))
    torch.testing.assert_close(by_clip, by_frame, rtol=0, atol=1e-12)


def test_the_output_depends_continuously_on_log_snr(lively: Lively) -> None:
    model, z = lively(), noisy()
    with torch.no_grad():
        at, near, far = (model(z, level(x)) for x in (1.0, 1.001, 3.0))
    assert 0 < (near - at).abs().max() < 0.05 * (far - at).abs().max()


def test_temporal_attention_matches_shaws_formula() -> None:
    """Compares with the formula written out for one head and position at a time."""
    torch.manual_seed(0)
    frames, reach, channels, head = 6, 3, 8, 4
    attention = TemporalAttention(channels, head, reach).double()
    x = torch.randn(frames, 2, channels, dtype=torch.float64)
    y = attention.norm(x)
    (q, k), v = attention.qk(y).chunk(2, dim=-1), attention.v(y)
    mixed = torch.zeros_like(v)
    for s in range(2):
        for h in range(0, channels, head):
            for i in range(frames):
                logits = torch.stack(
                    [
                        q[i, s, h : h + head]
                        @ (k[j, s, h : h + head] + attention.relative[max(-reach, min(reach, j - i)) + reach])
                        for j in range(frames)
                    ]
                )
                weights = (logits / head**0.5).softmax(0)
                mixed[i, s, h : h + head] = weights @ v[:, s, h : h + head]
    torch.testing.assert_close(attention(x, frames, frames), x + attention.out(mixed), rtol=0, atol=1e-12)


def test_pooling_ignores_padding_and_uses_every_word() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(32, 16).double()
    text, keep = torch.randn(1, 4, 32, dtype=torch.float64), torch.tensor([[True, True, True, False]])
    for i, kept in enumerate(keep[0].tolist()):
        other = text.clone()
        other[:, i] += torch.randn(32, dtype=torch.float64)
        moved_by = (pool(other, keep) - pool(text, keep)).abs().max().item()
        assert (moved_by > 0) == kept


def test_dropped_captions_encode_as_the_null(lively: Lively) -> None:
    model = lively()
    ids = torch.tensor([[5, 6, 0], [5, 6, 0]])
    cond = model.encode(*model.reader(ids), drop_B=torch.tensor([True, False]))
    assert torch.equal(cond[0], model.null)
    assert not torch.equal(cond[1], model.null)
    with torch.no_grad():
        torch.testing.assert_close(model(noisy(), level(), cond[:1]), model(noisy(), level()), rtol=0, atol=0)


def test_an_unconditional_network_has_no_conditioning_layers(lively: Lively) -> None:
    model = lively(text="none", words=())
    assert not [name for name, _ in model.named_parameters() if name.startswith(("null", "mix", "pool", "reader"))]
    assert model(noisy(), level()).shape == noisy().shape


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (3, 8, 16), (20, 16, 24)])
def test_other_frame_counts_and_sizes_run(lively: Lively, frames: int, height: int, width: int) -> None:
    z = torch.randn(2, 3, frames, height, width, dtype=torch.float64)
    with torch.no_grad():
        assert lively()(z, level(0.0, 1.0)).shape == z.shape


def test_every_parameter_has_a_gradient_at_the_first_step(tiny: Config) -> None:
    torch.manual_seed(0)
    model = VideoUNet(tiny)
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    cond = model.encode(*model.reader(ids), drop_B=torch.tensor([True, False]))
    model(noisy(batch=2).float(), level(0.0, 1.0).float(), cond).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_tiny_gives_the_recorded_values(tiny: Config) -> None:
    """Detects accidental changes of the network. Every weight comes from a closed formula, not a generator."""
    model = VideoUNet(tiny).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            ramp = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.3 * torch.sin(1.7 * ramp + i)).view_as(parameter))
        z = torch.sin(0.1 * torch.arange(3 * 4 * 16 * 16, dtype=torch.float64)).view(1, 3, 4, 16, 16)
        out = model(z, level(1.0), model.encode(*model.reader(torch.tensor([[2, 3, 4, 0]]))), independent=1)
    found = [out.mean(), out.std(), out[0, 0, 0, 0, 0], out[0, 1, 2, 7, 9], out[0, 2, 3, 15, 15]]
    torch.testing.assert_close(torch.stack(found), torch.tensor(RECORDED, dtype=torch.float64), rtol=0, atol=1e-8)
