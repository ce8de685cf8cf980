from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from kinema.canvas import Canvas
from kinema.evaluation import measuring, report, temporal
from kinema.evaluation.report import Report
from kinema.evaluation.run import EvaluateOptions, evaluate
from kinema.evaluation.sampling import Sampling
from kinema.schema import BadRequest
from kinema.system import System, open_system

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module", autouse=True)
def _without_flow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (measuring, temporal):
            patch.setattr(module, "has_flow", lambda: False)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A report whose video arm has real clips, and whose frame-by-frame arm alternates frames of two real clips."""

    def clips(self: Sampling, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> torch.Tensor:
        per_frame_option = self.request.extra.get("per_frame", False)
        videos = []
        for i, prompt in enumerate(prompts):
            video, other = self.real(prompt, seed + i), self.real(prompt, seed + i + 100)
            if per_frame_option:
                video[:, 4:8], video[:, 12:] = other[:, 4:8], other[:, 12:]
            videos.append(video)
        return torch.stack(videos)

    def sampling_of(system: System, options: EvaluateOptions, *_: object, **__: object) -> Sampling:
        return Sampling.of(system, frames=16, height=16, width=16, steps=options.steps)

    evidence = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampling, "clips", clips)
        patch.setattr(measuring, "sampling_of", sampling_of)
        options = EvaluateOptions(preset="tiny", report=True, prompts=4, steps=1, evidence=str(evidence), device="cpu")
        result = evaluate(options)
    assert isinstance(result, Report)
    return result, evidence


def test_alternating_frames_raise_the_measures_and_real_clips_have_ratio_one(written: tuple) -> None:
    measures = written[0].measures
    assert {"jerk", "high_frequency_ratio", "sharpness"} < measures.keys()
    assert all(line.against["as a video / real"].ratio.median == pytest.approx(1) for line in measures.values())
    for name in ("luma_second_difference", "block_borders"):
        against = measures[name].against["frame by frame / as a video"]
        assert against.ratio.median > 1.5
        assert against.higher == 4
    kept = written[0].shares["kept"].arms
    assert kept["frame by frame"].mean <= kept["as a video"].mean == kept["real"].mean


def test_the_page_states_the_mask_the_model_and_the_command(written: tuple) -> None:
    page = (written[1] / "temporal-consistency.md").read_text(encoding="utf-8")
    for words in (
        "per_frame=True, where nothing passes between groups of 4 frames",
        "weights `seed:0`",
        "Each of 4 evaluation prompts",
        "prompt i has seed 0 + i",
        "`kinema evaluate --report --preset tiny --prompts 4 --steps 1`",
        "temporal-consistency.png",
    ):
        assert words in page


def test_images_are_small_and_on_the_page(written: tuple) -> None:
    images = sorted(written[1].glob("*.png"))
    assert {"temporal-consistency.png", "temporal-consistency-1.png"} <= {p.name for p in images}
    assert all(1000 < p.stat().st_size <= 300_000 for p in images)
    page = (written[1] / "temporal-consistency.md").read_text(encoding="utf-8")
    assert all(f"({p.name})" in page for p in images)


def test_the_json_has_every_figure_and_no_date(written: tuple) -> None:
    data = json.loads((written[1] / "temporal-consistency.json").read_text(encoding="utf-8"))
    assert data == json.loads(written[0].to_json())
    assert data["protocol"]["measured"] == 4
    assert not {"date", "time"} & data["protocol"].keys()
    assert data["shares"]["kept"]["arms"]["real"]["count"] == 4


def test_both_arms_start_from_the_same_noise_and_differ_only_by_the_mask() -> None:
    system = open_system("zoetrope", preset="tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in system.model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    option, _ = report.per_frame_option(system)
    video = Sampling.of(system, steps=1, frames=8)
    single = Sampling.of(system, steps=1, frames=8, extra={option: True})
    together, per_frame_option = (s.clips(["a red ball rolls right"], 0) for s in (video, single))
    assert not torch.allclose(together, per_frame_option)
    # A single group of frames has no other group to be separated from.
    short = [
        Sampling.of(system, steps=1, frames=4, extra=extra).clips(["a red ball spins"], 0)
        for extra in ({}, {option: True})
    ]
    torch.testing.assert_close(short[0], short[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["zoetrope", "vdm"])
def test_the_per_frame_option_is_supported_by_its_family(family: str) -> None:
    system = open_system(family, preset="tiny", device="cpu")
    option, sentence = report.per_frame_option(system)
    assert Sampling.of(system, extra={option: True}).request.extra == {option: True}
    assert "frame" in sentence


def test_a_page_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="run `kinema evaluate --report` first"):
        report.render(tmp_path)


def test_an_evidence_folder_that_cannot_be_created_is_refused_first(tmp_path: Path) -> None:
    options = EvaluateOptions(preset="tiny", report=True, evidence=str(tmp_path / "no" / "evidence"), device="cpu")
    with pytest.raises(BadRequest, match="does not exist"):
        evaluate(options)


def test_an_existing_report_is_replaced_only_with_overwrite(written: tuple) -> None:
    evidence = written[1]
    before = (evidence / f"{report.NAME}.json").read_bytes()
    with pytest.raises(BadRequest, match="already has a report; .* --overwrite"):
        evaluate(EvaluateOptions(preset="tiny", report=True, evidence=str(evidence), device="cpu"))
    assert (evidence / f"{report.NAME}.json").read_bytes() == before


def test_two_simultaneous_reports_are_both_kept(written: tuple, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    places = [report._claim_folder(written[0], evidence, overwrite=overwrite) for overwrite in (False, False, True)]
    assert places == [evidence, tmp_path / "evidence-2", evidence]
    assert all((place / f"{report.NAME}.json").read_text() == written[0].to_json() for place in places)
