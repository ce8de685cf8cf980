from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from kinema import registry
from kinema.canvas import Canvas
from kinema.data import playroom
from kinema.evaluation import measuring, temporal
from kinema.evaluation.results import Compared, Counted, Evaluation, to_json
from kinema.evaluation.run import EvaluateOptions, evaluate
from kinema.evaluation.sampling import Sampling
from kinema.events import Event, Note, Phase, Step
from kinema.schema import BadRequest, Request
from kinema.system import System, open_system


@pytest.fixture(scope="module", autouse=True)
def _without_flow() -> Iterator[None]:
    """Optical flow takes half a second per clip and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (measuring, temporal):
            patch.setattr(module, "has_flow", lambda: False)
        yield


def tiny() -> System:
    return open_system("zoetrope", preset="tiny", device="cpu")


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> System:
    """A model whose clips are real ones, at 16 frames of 64×64."""
    system = tiny()
    full = Request(frames=16, height=64, width=64, fps=8.0, steps=1, sampler="euler", guidance=1.0)

    def clips(self: Sampling, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> torch.Tensor:
        return torch.stack([self.real(prompt, seed + i) for i, prompt in enumerate(prompts)])

    monkeypatch.setattr(Sampling, "clips", clips)
    monkeypatch.setattr(measuring, "sampling_of", lambda *_, **__: Sampling(system, full))
    return system


def test_real_clips_score_full_marks_and_ratios_of_one(perfect: System) -> None:
    result = measuring.measure(perfect, EvaluateOptions(prompts=4, batch=2, animate=True))
    assert result.text_to_video is not None
    scores = result.text_to_video.scores
    assert scores.colour is not None
    assert scores.shape is not None
    assert scores.colour.mean == scores.shape.mean == 1
    for name in ("jerk", "high_frequency_ratio", "luma_second_difference", "motion_amount"):
        compared = result.text_to_video.temporal[name]
        ratio = compared.against.ratio
        assert (ratio.median, ratio.low, ratio.high, compared.against.lower, compared.against.higher) == (1, 1, 1, 0, 0)
        assert compared.against.lower_share.mean == 0.5
        assert compared.control is not None
        assert compared.control.ratio.median != 1
    image = result.image_to_video
    assert image is not None
    assert image.psnr_own.mean == 100
    assert image.exact_after.mean == image.kept.mean == image.colour.mean == image.shape.mean == 1
    assert image.seam.against.ratio.median == 1
    assert {compared.against.ratio.median for compared in image.temporal.values()} == {1}
    assert result.table().count("| temporal measure |") == 2


def test_a_clip_is_measured_against_one_real_clip_and_another_is_the_control(perfect: System) -> None:
    prompt, fps = "a red ball bounces", 8.0
    sampling = Sampling(perfect, Request(frames=16, height=64, width=64, fps=fps))
    (row,) = measuring.text_rows(sampling, [prompt], 5)
    real, control = (
        temporal.temporal(sampling.real(prompt, seed), fps)["luma_second_difference"] for seed in (5, 5 + 500_009)
    )
    assert row.real["luma_second_difference"] == real
    assert row.control["luma_second_difference"] == control != real


def test_one_clip_that_pulses_changes_neither_the_median_nor_the_counts_much() -> None:
    steady, pulsing = [1.0, 1.0, 1.0, 1.0, 1.0], [0.9, 0.9, 0.9, 0.9, 500.0]
    compared = Compared.of(pulsing, steady)
    assert compared.against.ratio.median == pytest.approx(0.9)  # the ratio of means is 101
    assert (compared.against.lower, compared.against.higher) == (4, 1)
    assert compared.against.lower_share.mean == pytest.approx(0.8)


def test_small_measures_keep_their_digits_in_json() -> None:
    pulse = Compared.of([0.0000481234567], [0.000123456789])
    data = json.loads(to_json(pulse))
    assert (data["made"]["median"], data["real"]["median"]) == (4.81235e-05, 0.000123457)
    assert data["made"]["low"] is None  # a single clip has no interval


def test_motion_is_counted_by_kind(perfect: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def clips(self: Sampling, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> torch.Tensor:
        shown = {"a red ball spins": "a red ball rolls right"}
        return torch.stack([self.real(shown.get(p, p), seed + i) for i, p in enumerate(prompts)])

    monkeypatch.setattr(Sampling, "clips", clips)
    prompts = ["a red ball spins", "a blue box bounces", "a white star rotates", "a green ring hops"]
    monkeypatch.setattr(measuring, "prompts_of", lambda *_: prompts)
    result = measuring.measure(perfect, EvaluateOptions(prompts=4, batch=4))
    assert result.text_to_video is not None
    assert result.text_to_video.motions == {"bounces": Counted(2, 2), "spins": Counted(1, 2)}
    assert "Motion by kind: bounces 2 of 2, spins 1 of 2." in result.table()


def test_a_table_shows_steadiness_beside_sharpness_and_motion(perfect: System) -> None:
    result = measuring.measure(perfect, EvaluateOptions(prompts=2))
    table = result.table()
    order = [table.rindex(f"| {name} |") for name in ("jerk", "luma second difference", "sharpness", "motion amount")]
    assert order == sorted(order)
    assert "| generated / real | lower / higher than real | real / real | lower / higher |" in table
    assert "| 2 of 2 |" in table  # denominators


def test_clips_of_other_prompts_score_like_guesses(perfect: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def clips(self: Sampling, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> torch.Tensor:
        return torch.stack([self.real("a white ring fades", seed + i) for i in range(len(prompts))])

    monkeypatch.setattr(Sampling, "clips", clips)
    result = measuring.measure(perfect, EvaluateOptions(prompts=4))
    assert result.text_to_video is not None
    assert result.text_to_video.scores.shape is not None
    assert result.text_to_video.scores.shape.mean <= 0.5


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path, list[Event]]:
    output = tmp_path_factory.mktemp("evaluate") / "scores.json"
    events: list[Event] = []
    options = EvaluateOptions(
        preset="tiny", prompts=3, batch=2, steps=2, animate=True, output=str(output), device="cpu"
    )
    result = evaluate(options, events.append)
    assert isinstance(result, Evaluation)
    return result, output, events


def test_the_file_has_figures_clips_and_a_protocol_without_date(untrained: tuple) -> None:
    result, output, _ = untrained
    data = json.loads(output.read_text())
    assert data == json.loads(result.to_json())
    protocol = data["protocol"]
    expected = {
        "prompts": 3,
        "measured": 3,
        "seed": 0,
        "steps": 2,
        "sampler": "vdm-ancestral",
        "weights": "seed:0",
        "split": "evaluation",
        "training_split": None,
    }
    assert expected.items() <= protocol.items()
    assert not {"date", "time", "created"} & protocol.keys()
    assert [clip["seed"] for clip in data["clips"]] == [0, 1, 2, 0, 1, 2]
    assert data["partial"] is False


def test_the_curve_has_the_tuning_prompts_and_everything_else_those_of_the_evaluation() -> None:
    assert EvaluateOptions().share == EvaluateOptions(report=True).share == "evaluation"
    assert EvaluateOptions(curve="run").share == "tuning"
    assert EvaluateOptions(curve="run", split="evaluation").share == "evaluation"
    assert measuring.prompts_of(EvaluateOptions()) == playroom.prompts(128, 0, "simple", "evaluation")


@pytest.mark.parametrize(
    ("model", "split"),
    [
        *[(name, "train-v1") for name in registry.EMBEDDED if name != "opensora-pocket"],
        ("opensora-pocket", "train"),
        ("my.safetensors", None),
    ],
)
def test_a_shipped_model_that_was_trained_on_the_evaluation_prompts_says_so(model: str, split: str | None) -> None:
    assert measuring.training_split(model) == split
    noted: list[Event] = []
    measuring.note_known_prompts(model, EvaluateOptions(), [], noted.append)
    measuring.note_known_prompts(model, EvaluateOptions(split="tuning"), [], noted.append)
    assert len(noted) == (1 if split == "train-v1" else 0)
    for event in noted:
        assert isinstance(event, Note)
        assert "so it has seen them; it has not seen those of --split tuning" in event.message


def test_psnr_uses_frame_0_before_the_given_one_is_restored(untrained: tuple) -> None:
    image = untrained[0].image_to_video
    assert image.psnr_own.mean < 30
    assert image.psnr_own_least <= image.psnr_own.mean
    assert image.exact_after.mean == 1


def test_progress_counts_clips_to_the_end_of_each_phase(untrained: tuple) -> None:
    events = untrained[2]
    phases = [e.detail for e in events if isinstance(e, Phase) and e.name == "measure"]
    assert phases == ["text to video, 3 clips", "image to video, 3 clips"]
    assert [(e.index, e.total) for e in events if isinstance(e, Step)] == [(2, 3), (3, 3)] * 2


def test_the_table_names_every_measure(untrained: tuple) -> None:
    table = untrained[0].table()
    for words in (
        "colour",
        "direction",
        "jerk",
        "high frequency ratio",
        "PSNR of the model's own frame 0",
        "weights seed:0",
    ):
        assert words in table


def interrupt_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    original, calls = getattr(measuring, name), []

    def rows(*args: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(measuring, name, rows)


def test_an_interruption_keeps_what_was_measured_and_reports_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt_at(monkeypatch, "text_rows", 2)
    events: list[Event] = []
    output = tmp_path / "scores.json"
    options = EvaluateOptions(
        preset="tiny", prompts=5, batch=2, steps=1, animate=True, output=str(output), device="cpu"
    )
    result = evaluate(options, events.append)
    assert result.partial
    data = json.loads(output.read_text())
    assert (data["partial"], data["protocol"]["prompts"], data["protocol"]["measured"]) == (True, 5, 2)
    assert data["image_to_video"] is None
    assert "Interrupted" in result.table()
    assert any(isinstance(e, Note) and "2 of 5 clips" in e.message for e in events)


def test_an_interruption_of_the_second_task_keeps_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, "image_rows", 1)
    options = EvaluateOptions(preset="tiny", prompts=2, steps=1, animate=True, device="cpu")
    result = measuring.measure(tiny(), options)
    assert result.partial
    assert result.text_to_video is not None
    assert result.image_to_video is None


def test_an_interruption_before_any_measurement_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    interrupt_at(monkeypatch, "text_rows", 1)
    output = tmp_path / "scores.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateOptions(preset="tiny", prompts=2, steps=1, output=str(output), device="cpu"))
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompts": 0}, "prompts is 0; expected 1"),
        ({"batch": 10**6}, "batch is 1000000; expected 1 to 256"),
        ({"grammar": "french"}, "grammar is 'french'; expected simple, full, mixed"),
        ({"prompts_file": "a.txt", "split": "tuning"}, "split cannot be combined with prompts_file"),
        ({"prompts_file": "a.txt", "grammar": "full"}, "grammar cannot be combined with prompts_file"),
        ({"prompts_file": "a.txt", "curve": "run"}, "curve cannot be combined with prompts_file"),
        ({"report": True, "curve": "run"}, "report and curve cannot be combined"),
        ({"report": True, "animate": True}, "animate"),
    ],
)
def test_invalid_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        EvaluateOptions(**options)


def test_an_unwritable_output_is_refused_before_sampling(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(BadRequest, match="does not exist"):
        evaluate(EvaluateOptions(preset="tiny", output=str(tmp_path / "no" / "scores.json")), events.append)
    with pytest.raises(BadRequest, match="is a folder; expected the name of a JSON file"):
        evaluate(EvaluateOptions(preset="tiny", output=str(tmp_path)), events.append)
    assert not events


def test_without_opencv_the_rest_is_measured_with_a_note() -> None:
    events: list[Event] = []
    result = measuring.measure(tiny(), EvaluateOptions(prompts=1, steps=1), events.append)
    assert result.text_to_video is not None
    assert "interpolation_residual" not in result.text_to_video.temporal
    assert "jerk" in result.text_to_video.temporal
    assert any(isinstance(e, Note) and "OpenCV" in e.message for e in events)


def test_a_model_without_text_is_refused() -> None:
    with pytest.raises(BadRequest, match="vdm/ucf101 has no text conditioning"):
        evaluate(EvaluateOptions(model="vdm", preset="ucf101", prompts=1, device="cpu"))


def test_an_unknown_sampler_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadRequest, match="no sampler 'eulr'.*euler"):
        evaluate(EvaluateOptions(preset="tiny", prompts=1, sampler="eulr", device="cpu"))


def test_existing_results_are_replaced_only_with_overwrite(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    output.write_text("mine")
    with pytest.raises(BadRequest, match="pass --overwrite"):
        evaluate(EvaluateOptions(preset="tiny", prompts=1, steps=1, output=str(output), device="cpu"))
    assert output.read_text() == "mine"


def test_results_whose_name_was_taken_meanwhile_get_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, measure = tmp_path / "scores.json", measuring.measure
    events: list[Event] = []

    def measured(*arguments: object, **named: object) -> Evaluation:
        output.write_text("another's")
        return measure(*arguments, **named)

    monkeypatch.setattr(measuring, "measure", measured)
    evaluate(EvaluateOptions(preset="tiny", prompts=1, steps=1, output=str(output), device="cpu"), events.append)
    assert output.read_text() == "another's"
    assert "protocol" in json.loads((tmp_path / "scores-2.json").read_text())
    notes = [e.message for e in events if isinstance(e, Note)]
    assert f"{output} was created meanwhile; these results are in {tmp_path / 'scores-2.json'}" in notes
