"""Whole sampling runs of Open-Sora 1.0 to 1.3 with the core's samplers, guidance and overwriting.

Reference: IDDPM of hpcaitech/Open-Sora 1.0 (d7518da) and 1.1 (c37e6d6), RFLOW of 1.2 (bde3c42) and 1.3 (2ca632a), run
with a fixed map in the place of the network and the same noise (tools/record_opensora_samplers.py). Results differ by
at most 5e-6 of their largest value. 1.1 keeps its schedule in float32, where ``1 - alpha²`` of the last step has few
digits left and every value is multiplied by 0.99983; the recorded runs of it have the schedule in float64, and one is
as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.diffusion.guidance import Guidance, Guided, classifier_free, oscillating
from kinema.diffusion.overwrite import CleanFrames, KnownRegion, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import RectifiedFlow, spaced
from kinema.families.opensora.first_line import process
from kinema.schema import BadRequest


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def stand_in(z: Tensor, time: Tensor, generated: Tensor | None, text: Tensor, cond: Tensor | None = None) -> Tensor:
    """The map that stood in for the network: z B×C×T×H×W to 2C channels; text [B], cond B×2C×T×H×W."""
    _, c, t, h, w = z.shape
    mix, frames, rest = normal(1, 2 * c, c) * 0.15, normal(2, t, t) * 0.15, normal(3, 4, 2 * c, 1, h, w) * 0.3
    out = torch.einsum("oc,bcthw->bothw", mix, z)
    out = out + torch.einsum("ts,bcshw->bcthw", frames, torch.cat([z, z.roll(1, 3)], 1))
    out[:, :c] += 0.9 * z
    out = out + rest[0] * torch.sin(time / 150).reshape(-1, 1, 1, 1, 1) + 0.1 * rest[1] * text.reshape(-1, 1, 1, 1, 1)
    if cond is not None:
        out = out + 0.5 * (cond.roll(1, 4) + cond.roll(2, 2))
    if generated is not None:
        out = torch.where(generated[:, None, :, None, None], out, 0.6 * out + rest[2])
    return torch.cat([out[:, :c], out[:, c:].tanh()], 1)


class Draws:
    """In place of `Noise`: the original's draws of these numbers, in turn."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.numbers = numbers

    def like(self, z: Tensor) -> Tensor:
        return normal(100 + next(self.numbers), *z.shape)


SHAPE = (2, 4, 6, 3, 2)
Z, GIVEN = normal(99, *SHAPE), normal(98, *SHAPE)
PROMPT, NULL = torch.tensor([0.8, -0.5]), torch.tensor([-0.3, 0.4])
MASKS_1_1 = torch.tensor([[0.0, 0.4, 0.29, 1.0, 1.0, 0.4], [1.0, 1.0, 0.07, 0.99, 0.0, 0.005]])
MASKS_1_2 = torch.tensor([[0.0, 0.4, 0.8, 1.0, 0.2, 1.0], [1.0, 0.4, 1.0, 0.999, 0.0, 0.07]])
TOLERANCE = 5e-6


def assert_near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


class Net:
    """`stand_in` as a network of a branch; keeps what it was told of frames."""

    def __init__(self, text: Tensor, cond: Tensor | None = None) -> None:
        self.text, self.cond = text, cond
        self.told: list[Tensor] = []

    def __call__(self, z: Tensor, time: Tensor, generated: Tensor | None) -> Tensor:
        if generated is not None:
            self.told.append(generated)
        return stand_in(z, time.to(z), generated, self.text, self.cond)


# ------------------------------------------------------------------------------------- 1.0, 1.1


def iddpm(
    guidance: Guidance, mask: Tensor | None, steps: int = 100, *, keep_given: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The result, and which frames the network was told are generated in each step."""
    levels, nets = spaced(process.BETAS, steps, process.SPACING), {"positive": Net(PROMPT), "negative": Net(NULL)}
    branches = {name: process.iddpm_denoiser(net, variance=True) for name, net in nets.items()}
    denoise: Denoiser = Guided(branches, guidance, levels=levels)
    if mask is None:
        return SAMPLERS["iddpm"](denoise, Z, levels, noise=Draws(count())), []
    regions = process.iddpm_regions(Z, mask, levels, keep_given=keep_given)
    over = Overwrite(regions, levels, Draws(2 * r.release for r in regions if r.release is not None), Z)
    denoise = over.around(CleanFrames(denoise, over.clean, over.told_clean))
    draws = Draws(count(1 + 2 * over.first, 2))
    run = {"noise": draws, "state": over.run(over.first)}
    return SAMPLERS["iddpm"](denoise, over.start(Z), levels[over.first :], **run), nets["positive"].told


def test_timesteps_and_betas_of_the_respaced_process(recorded: Any) -> None:
    tensors, levels = recorded("1.0")[0], spaced(process.BETAS, 100, process.SPACING)
    times = process.BETAS.timestep(levels.log_snr[:-1]).flip(0)
    assert times[:7].tolist() == pytest.approx([0, 10, 20, 30, 40, 50, 61])
    assert times.tolist() == pytest.approx(tensors["timesteps"].tolist(), abs=1e-9)
    signal = levels.alpha.square().flip(0)
    betas = 1 - signal[1:] / signal[:-1]
    assert betas.tolist() == pytest.approx(tensors["betas"].tolist(), rel=1e-9)
    assert (float(betas[0]), float(betas[-1])) == pytest.approx((1e-4, 0.18218), rel=1e-4)


def test_a_run_of_1_0(recorded: Any) -> None:
    found, _ = iddpm(process.guided_channels(7.0, 3), None)
    assert_near(found, recorded("1.0")[0]["free"])


@pytest.mark.parametrize(
    ("name", "guidance", "mask", "steps"),
    [
        ("free", process.guided_channels(7.0, 3), None, 100),
        ("masked", process.guided_channels(7.0, 3), MASKS_1_1, 100),
        ("whole", process.guided_channels(7.0, 3), torch.full((2, 6), 0.4), 100),
        ("all-channels", process.guided_channels(4.0, 4), MASKS_1_1, 50),
    ],
)
def test_runs_of_1_1(recorded: Any, name: str, guidance: Guidance, mask: Tensor | None, steps: int) -> None:
    tensors = recorded("1.1")[0]
    found, told = iddpm(guidance, mask, steps)
    assert_near(found, tensors[name])
    if mask is not None:
        skipped = steps - len(told)  # an edit of the whole clip starts at its release
        assert torch.equal(torch.stack(told), tensors[f"{name}.told"][skipped:])


def test_1_1_as_it_was_differs_by_its_rounding(recorded: Any) -> None:
    found, _ = iddpm(process.guided_channels(7.0, 3), MASKS_1_1)
    expected = recorded("1.1")[0]["rounded"]
    last = torch.tensor(1e-4) / (1 - (1 - torch.tensor(1e-4)))
    assert float(last) == pytest.approx(0.99983, abs=1e-5)
    assert_near(found * last, expected, 1e-4)
    assert float((found - expected).abs().max()) > 1e-4 * float(expected.abs().max())


def test_1_1_predicts_given_frames_again_unless_asked_to_keep_them() -> None:
    found, _ = iddpm(process.guided_channels(7.0, 3), MASKS_1_1)
    kept, told = iddpm(process.guided_channels(7.0, 3), MASKS_1_1, keep_given=True)
    for item, frame in ((0, 0), (1, 4)):
        assert torch.equal(kept[item, :, frame], Z[item, :, frame])
        assert 1e-3 < float((found - Z)[item, :, frame].abs().max()) < 0.5
        assert not any(bool(step[item, frame]) for step in told)


def test_an_edit_ratio_of_1_1_is_noised_one_state_before_the_network_is_told() -> None:
    levels = spaced(process.BETAS, 100, process.SPACING)
    (region,) = process.iddpm_regions(Z, torch.full((2, 6), 0.4), levels)
    assert (region.release, region.noise) == (59, "lagging")
    assert float(process.BETAS.timestep(levels.log_snr[59:60])) == pytest.approx(404)
    assert float(process.BETAS.timestep(levels.log_snr[60:61])) == pytest.approx(394)
    over = Overwrite([region], levels, Draws(count()), Z)
    assert [bool(over.told_clean(levels[i]).all()) for i in (58, 59, 60)] == [True, True, False]
    assert [bool(over.clean(levels[i]).all()) for i in (58, 59, 60)] == [True, False, False]


def test_ratios_are_multiplied_in_float32_as_published() -> None:
    assert process.iddpm_release(0.29, 100) == 99 - 29  # 28.999999999999996 in float64
    assert process.iddpm_release(0.0, 100) == 99


def test_without_the_variance_other_samplers_take_the_denoiser() -> None:
    levels = spaced(process.BETAS, 10, process.SPACING)
    found = SAMPLERS["ddim"](process.iddpm_denoiser(Net(PROMPT), variance=False), Z, levels, noise=Draws(count()))
    assert found.shape == Z.shape


# ----------------------------------------------------------------------------------------- 1.2, 1.3

TWO = {"positive": Net(PROMPT), "negative": Net(NULL)}


def flow(
    schedule: RectifiedFlow,
    guidance: Guidance,
    nets: Mapping[str, Net],
    mask: Tensor | None = None,
    sdedit: Tensor | None = None,
) -> Tensor:
    levels, steps = spaced(schedule, 30), 30
    branches = {name: process.flow_denoiser(net) for name, net in nets.items()}
    denoise: Denoiser = Guided(branches, guidance, levels=levels)
    regions: list[KnownRegion] = []
    draws = count()
    if mask is not None:
        regions = process.flow_regions(Z, mask, levels)
        draws = iter([r.release for r in regions if r.release is not None and r.release < steps])
    if sdedit is not None:
        regions = [process.sdedit_region(GIVEN, sdedit, levels)]
    over = Overwrite(regions, levels, Draws(draws), Z)
    if mask is not None:
        denoise = over.around(CleanFrames(denoise, over.clean, over.told_clean))
    return SAMPLERS["euler"](denoise, over.start(Z), levels, noise=Draws(count()), state=over.run())


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("masked", process.flow_v1_2(240, 426, 51)),
        ("large", process.flow_v1_2(720, 1280, 102)),
        ("untransformed", RectifiedFlow()),
    ],
)
def test_runs_of_1_2_with_masks(recorded: Any, name: str, schedule: RectifiedFlow) -> None:
    tensors, nets = recorded("1.2")[0], {"positive": Net(PROMPT), "negative": Net(NULL)}
    found = flow(schedule, classifier_free(7.0), nets, MASKS_1_2)
    assert_near(found, tensors[name])
    assert torch.equal(torch.stack(nets["positive"].told), tensors[f"{name}.told"])
    for item, frame in ((0, 0), (1, 4)):
        assert torch.equal(found[item, :, frame], Z[item, :, frame])


def t2v_1_3() -> Guidance:
    text = oscillating(7.5)
    return process.guidance_v1_3(text, 1.0, flaw_fix=True).merged({**TWO, "blank": TWO["negative"]})


@pytest.mark.parametrize(("name", "mask"), [("t2v", None), ("t2v-masked", MASKS_1_2)])
def test_1_3_from_text_with_oscillation_and_flaw_fix(recorded: Any, name: str, mask: Tensor | None) -> None:
    found = flow(process.flow_v1_3(240, 426, 113, 2.0), t2v_1_3(), TWO, mask)
    assert_near(found, recorded("1.3")[0][name])


def given_frames() -> tuple[Tensor, dict[str, Net]]:
    mask = torch.zeros(SHAPE)
    mask[:, :, [0, -1]] = 1
    full, blank = torch.cat([GIVEN * mask, mask], 1), torch.cat([0 * GIVEN, mask], 1)
    return mask[:, 0, :, 0, 0], {"positive": Net(PROMPT, full), "negative": Net(NULL, full), "blank": Net(NULL, blank)}


def test_1_3_with_given_frames(recorded: Any) -> None:
    _, nets = given_frames()
    schedule = process.flow_v1_3(240, 426, 113, by_frames=False)
    assert_near(flow(schedule, process.guidance_v1_3(7.5, 5.0, flaw_fix=False), nets), recorded("1.3")[0]["i2v"])


def test_1_3_with_sdedit_oscillation_and_dynamic_image_guidance(recorded: Any) -> None:
    mask, nets = given_frames()
    image = process.image_scale_v1_3(5.0, SHAPE[2], 30, oscillate=True, dynamic=True)
    guidance = process.guidance_v1_3(oscillating(7.5), image, flaw_fix=False)
    found = flow(process.flow_v1_3(240, 426, 113), guidance, nets, sdedit=mask)
    assert_near(found, recorded("1.3")[0]["v2v-sdedit"])


def test_levels_are_the_published_ones() -> None:
    told = 1000 * spaced(process.flow_v1_2(240, 426, 51), 30).sigma
    assert told[:4].tolist() == pytest.approx([1000, 985.944, 971.315, 956.080], abs=1e-3)
    assert float(told[29]) == pytest.approx(76.983, abs=1e-3)
    assert process.flow_v1_2(720, 1280, 102).shift == pytest.approx(10.2698, abs=1e-4)
    assert process.flow_v1_2(512, 512, 1).shift == process.flow_v1_3(512, 512, 1, 2.0).shift == 1
    assert process.flow_v1_3(512, 512, 112, 2.0).shift == pytest.approx(2 * 27**0.5)
    assert 1000 * float(spaced(process.flow_v1_3(720, 1280, 113), 30).sigma[29]) == pytest.approx(254.912, abs=1e-3)


@pytest.mark.parametrize(
    ("shape", "edits", "states"),
    [
        ((240, 426, 51), (0.2, 0.4, 0.8, 0.0, 1.0), (28, 24, 12, 30, 0)),
        ((720, 1280, 102), (0.2, 0.4, 0.8, 0.0, 1.0), (30, 29, 22, 30, 0)),
    ],
)
def test_edit_ratios_join_by_the_shifted_time(
    shape: tuple[int, int, int], edits: tuple[float, ...], states: tuple[int, ...]
) -> None:
    levels = spaced(process.flow_v1_2(*shape), 30)
    assert tuple(process.flow_release(edit, levels) for edit in edits) == states


def test_a_reference_of_ratio_1_stands_where_the_noise_was() -> None:
    """Its mask is 1, so the original adds no noise to it, and samples from it as if it were."""
    placed = torch.zeros(2, 6)
    placed[1, 3] = 1
    found = process.started(Z, GIVEN, placed)
    assert torch.equal(found[1, :, 3], GIVEN[1, :, 3])
    assert torch.equal(found[0], Z[0])
    assert process.flow_regions(GIVEN, torch.ones(2, 6), spaced(RectifiedFlow(), 4)) == []


@pytest.mark.parametrize("frames", [2, 16])
def test_clips_too_short_for_a_shift_are_refused(frames: int) -> None:
    with pytest.raises(BadRequest, match="expected 1 frame, at least 17"):
        process.flow_v1_2(240, 426, frames)
    with pytest.raises(BadRequest, match="expected 1 frame, at least 5"):
        process.flow_v1_3(240, 426, 4)
