"""The evidence (benchmarks/evidence): its arms, its stored rows, its page, from training to text on tiny runs."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.data import playroom
from kinema.data.playroom import grammar
from kinema.diffusion.noise import Noise
from kinema.evaluation import metrics
from kinema.evaluation.intervals import win_rate
from kinema.families.vdm.config import presets
from kinema.system import open_system

ROOT = Path(__file__).parents[1]
HASH = ""
"""What is stated of the weights of the tests' extractor."""


@pytest.fixture
def evidence(monkeypatch):
    """The package's modules by name, with runs short enough for a test."""
    monkeypatch.syspath_prepend(str(ROOT))

    def module(name):
        return importlib.import_module(f"benchmarks.evidence.{name}")

    protocol, parts = module("protocol"), module("parts")
    few = [p for p in protocol.prompts() if playroom.parse(p).direction][:3] + parts.lasting()[:1]
    monkeypatch.setattr(protocol, "prompts", lambda: few)
    for name, value in (("BATCH", 2), ("COMMON_STEPS", 2), ("STEPS", 2), ("SAMPLING_STEPS", 2), ("STRENGTH", 0.5)):
        monkeypatch.setattr(protocol, name, value)
    short = {"LANGEVIN": 2, "ANCESTRAL": 4, "LOSSES": 4, "EXTENSION_STEPS": 2, "TOTAL": 24, "EXTENDED": 4}
    for name, value in short.items():
        monkeypatch.setattr(parts, name, value)
    monkeypatch.setattr(metrics, "FLOW_SIDE", 48)
    pocket = presets()["tiny"]
    monkeypatch.setattr(module("training"), "presets", lambda: {"pocket": pocket})
    monkeypatch.setattr(module("training"), "COMPILE", False)
    torch.set_num_threads(1)
    yield module
    torch.set_grad_enabled(True)


def colours(video_BCTHW):
    """Features for tests: mean colour of the first and the last frame."""
    return video_BCTHW[:, :, [0, -1]].mean((3, 4)).flatten(1)


@pytest.fixture
def untrained(evidence, tmp_path):
    training, protocol = evidence("training"), evidence("protocol")
    for model in protocol.MODELS.values():
        training.options(tmp_path, model, lambda event: None)
    return {name: open_system(tmp_path / f"start-{name}.safetensors") for name in protocol.MODELS}


# ------------------------------------------------------------------------------------- the protocol


def test_the_prompts_are_64_texts_that_no_training_or_tuning_clip_has(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    protocol = importlib.import_module("benchmarks.evidence.protocol")
    prompts = protocol.prompts()
    assert len(set(prompts)) == len(prompts) == 64
    assert list(prompts) == playroom.prompts(64, 30, "simple", "evaluation")
    rng = np.random.default_rng(0)
    meanings = [
        grammar.random_meaning(rng, "simple", split, {}) for split in ("train", "tuning") for _ in range(10_000)
    ]
    other = {grammar.phrase(meaning, rng, grammar.RARE_SYNONYM) for meaning in meanings}
    assert len(other) > 1000
    assert not other & set(prompts)


def test_the_seeds_of_different_clips_differ(evidence):
    protocol, parts = evidence("protocol"), evidence("parts")
    arms = [(arm, r) for arm in ("video", parts.OTHER) for r in range(protocol.PER_PROMPT)]
    seeds = [parts._seed(arm, i, r) for arm, r in arms for i in range(64)]
    assert len(set(seeds)) == len(seeds)
    frames = 64 + evidence("sampling").APART * protocol.FRAMES
    assert frames < 100_000


def test_both_models_start_from_the_same_weights_and_cost_the_same(untrained, evidence):
    training, models = evidence("training"), evidence("protocol").MODELS
    weights = {name: system.model.state_dict() for name, system in untrained.items()}
    image, video = weights["image"], weights["video"]
    assert image.keys() == video.keys()
    assert all(torch.equal(image[name], video[name]) for name in image)
    assert any(not torch.equal(image[name], weights["common"][name]) for name in image)  # the stage has been trained
    evidence("protocol").STEPS = 2000
    image, video = (training.steps(models[name]) * training.operations(models[name]) for name in ("image", "video"))
    assert image == pytest.approx(video, rel=1e-3)


# ------------------------------------------------------------------------------------------- arms


def test_the_arms_do_what_their_names_say(untrained, evidence):
    """Untrained networks return noise's mean, so the arms are told apart by how their frames hang together."""
    sampling, prompts = evidence("sampling"), evidence("protocol").prompts()[:2]
    clips = {arm: sampling.clips(arm, untrained, prompts, 5) for arm in evidence("protocol").ARMS}
    single = sampling.clips("same", untrained, prompts[1:], 6)
    assert torch.allclose(clips["same"][1:], single, atol=1e-5)  # a clip does not depend on its batch
    assert not clips["same"].diff(dim=2).any()
    assert torch.equal(clips["sdedit"][:, :, 0], clips["same"][:, :, 0])
    change = {arm: float(clip.diff(dim=2).abs().mean()) for arm, clip in clips.items()}
    assert 0 < change["sdedit"] < change["fresh"]


def test_frames_of_fresh_noise_do_not_depend_on_each_other(untrained, evidence, monkeypatch):
    """Other noise in frame 3 changes frame 3 alone, although attention over time has weights that would mix frames."""
    system = untrained["image"]
    with torch.no_grad():
        for name, p in system.model.named_parameters():
            if "time.out" in name:
                p.normal_(std=0.1)
    normal, prompts = Noise.normal, evidence("protocol").prompts()[:1]
    before = evidence("sampling").clips("fresh", untrained, prompts, 3)

    def other(noise, shape):
        drawn = normal(noise, shape).clone()
        drawn[:, :, 3] *= -1
        return drawn

    monkeypatch.setattr(Noise, "normal", other)
    change_T = (evidence("sampling").clips("fresh", untrained, prompts, 3) - before).abs().amax((0, 1, 3, 4))
    assert change_T[3] > 0.005
    assert change_T[torch.arange(len(change_T)) != 3].max() < 1e-5


# ------------------------------------------------------------------------------------------- rows


def test_rows_resume_and_refuse_other_weights(evidence, tmp_path):
    rows = evidence("rows")
    made = []

    def measure(i, j):
        made.append((i, j))
        return [{"value": k} for k in range(i, j)]

    first = rows.Rows(tmp_path / "part.jsonl", {"weights": "a"})
    first.measured("video", 3, 2, measure)
    again = rows.Rows(tmp_path / "part.jsonl", {"weights": "a"})
    assert [row["value"] for row in again.measured("video", 5, 2, measure)] == [0, 1, 2, 3, 4]
    assert made == [(0, 2), (2, 3), (3, 5)]
    with pytest.raises(SystemExit, match="was measured with"):
        rows.Rows(tmp_path / "part.jsonl", {"weights": "b"})


def test_a_row_that_is_cut_short_is_named(evidence, tmp_path):
    rows, path = evidence("rows"), tmp_path / "part.jsonl"
    path.write_text('{"weights": "a"}\n{"arm": "video", "val')
    with pytest.raises(SystemExit, match=r"part\.jsonl: line 2 is not JSON"):
        rows.stored(path)


# ---------------------------------------------------------------------------------------- summary


def test_a_prompts_value_is_the_mean_over_its_clips(evidence):
    summary = evidence("summary")
    rows = [{"prompt": p, "jerk": v} for p, v in (("a", 1), ("b", 5), ("a", 3), ("b", 5))]
    assert summary.by_prompt(rows, "jerk") == [2, 5]


def test_shares_count_only_clips_whose_prompt_asks(evidence):
    summary = evidence("summary")
    rows = [{"prompt": p, "direction": v} for p, v in (("a", True), ("b", None), ("a", False), ("c", True))]
    found = summary.share(rows, "direction")
    assert (found["right"], found["asked"], found["share"].mean, found["share"].count) == (2, 3, 0.75, 2)


def test_counts_of_pairs_survive_the_rounding_of_json(evidence):
    page, summary = evidence("page"), evidence("summary")
    for half in range(129):
        first = [0.0] * (half // 2) + [1.0] * (half % 2) + [2.0] * (64 - half // 2 - half % 2)
        assert page._of(summary.plain(win_rate(first, [1.0] * 64))) == f"{half / 2:g} of 64"


def test_a_shape_that_is_always_drawn_is_right_where_it_is_asked_for(evidence):
    rows = [{"prompt": f"a red {shape} spins"} for shape in ("star", "heart", "star", "box")]
    assert evidence("summary").one_shape(rows) == {"shape": "star", "right": 2}


def test_how_much_more_often_the_video_model_is_right_is_paired_by_prompt(evidence):
    def rows(*right):
        return [{"prompt": p, "shape": r} for p, r in zip("aabbcc", right, strict=True)]

    arms = {"video": rows(True, True, True, False, None, None), "fresh": rows(True, False, False, False, None, None)}
    found = evidence("summary").more_right(arms, "shape", "fresh")
    assert (found.mean, found.count) == (0.5, 2)


@pytest.mark.parametrize(
    ("low", "high", "better", "said"),
    [
        (-2, -1, True, "yes"), (1, 2, True, "no, the opposite"), (-2, -1, False, "no, the opposite"),
        (1, 2, False, "yes"), (-1, 1, True, "undecided"), (None, None, True, "undecided"), (0, 1, False, "undecided"),
    ],
)  # fmt: skip
def test_a_verdict_is_a_side_of_equality(evidence, low, high, better, said):
    assert evidence("page")._verdict(low, high, 0.0, better=better) == said


def test_claims_whose_measures_disagree_get_a_verdict_for_each(evidence):
    def distance(first, second, low, high):
        return {"first": first, "second": second, "difference": [first - second, low, high, 64]}

    one = {"measures": {}, "distances": {"KVD": distance(3.0, 2.0, 0.5, 1.5),
                                         "Fréchet distance": distance(9.0, 8.0, -1.0, 3.0)}}  # fmt: skip
    border = {"measures": {"change at block borders": {"first": [1.4], "second": [2.4], "ratio": [0.6, 0.5, 0.7, 16]}}}
    text = evidence("page").outcomes({"joint": one, "extension": border | {"distances": {}}})
    joint, extension = text.splitlines()[2:]
    assert joint.endswith("| KVD: no, the opposite; Fréchet distance: undecided |")
    assert extension.endswith("| change at block borders 1.4 against 2.4, ratio 0.6 (0.5 to 0.7) | yes |")


def test_the_committed_page_has_the_committed_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    page, folder = importlib.import_module("benchmarks.evidence.page"), ROOT / "docs/evidence"
    data = json.loads((folder / "video-diffusion.json").read_text(encoding="utf-8"))
    assert page.page(data) == (folder / "video-diffusion.md").read_text(encoding="utf-8")


def test_a_start_from_another_common_stage_is_refused(evidence, untrained, tmp_path):
    training, protocol = evidence("training"), evidence("protocol")
    done = tmp_path / "common" / "finished.safetensors"
    done.write_bytes((tmp_path / "start-common.safetensors").read_bytes())
    with pytest.raises(SystemExit, match="another common stage"):
        training.options(tmp_path, protocol.MODELS["video"], lambda event: None)


def test_a_slice_over_time_is_the_line_with_most_contrast(evidence):
    pictures = evidence("pictures")
    still = torch.zeros(3, 8, 8, 3, dtype=torch.uint8).numpy()
    still[:, 5, 2:4] = 200  # does not change
    still[1, 2, :, 0] = 9  # changes a little
    assert pictures.slice_over_time(still, across=True)[0].max() == 200
    clip = torch.zeros(3, 8, 8, 3, dtype=torch.uint8).numpy()
    clip[:, 5, :, 0] = [[10], [90], [40]]
    assert pictures.slice_over_time(clip, across=True)[:, 0, 0].tolist() == [10, 90, 40]
    clip[:, :, 2, 0] = [[200], [0], [255]]
    assert pictures.slice_over_time(clip, across=False)[:, 0, 0].tolist() == [200, 0, 255]


# ------------------------------------------------------------------------------- from end to end


@pytest.fixture
def run(evidence, monkeypatch, tmp_path):
    main = evidence("__main__")

    def run(*words):
        places = (
            "--out",
            str(tmp_path / "runs"),
            "--evidence",
            str(tmp_path),
            "--extractor",
            f"{__name__}:colours{HASH}",
        )
        monkeypatch.setattr(sys, "argv", ["benchmarks.evidence", *words, *places])
        return main.main()

    return run


def test_one_command_trains_samples_measures_and_writes_the_page(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match="run `make evidence`"):
        run("page")
    assert run() == 0
    text = (tmp_path / "video-diffusion.md").read_text()
    data = json.loads((tmp_path / "video-diffusion.json").read_text())
    for name in ("frames-1", "measures"):
        assert (tmp_path / "video-diffusion" / f"{name}.png").stat().st_size > 5000
        assert f"video-diffusion/{name}.png" in text
    still = data["figure"]["measures"]["motion_amount"]["medians"]["same"]
    assert still[:3] == [0, 0, 0]
    assert data["figure"]["shares"]["colour"]["video"]["asked"] == 8
    assert "nan" not in text
    assert math.isfinite(data["figure"]["distances"]["fresh"]["KVD"]["distance"][0])
    # again: nothing is trained or sampled, and the page is the same
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert run() == 0
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "video-diffusion.md").read_text() == text
    # rows of other weights or of another extractor are not mixed
    models = tmp_path / "video-diffusion" / "models.json"
    known = json.loads(models.read_text())
    models.write_text(json.dumps(known | {"video": known["video"] | {"weights": "sha256:0"}}))
    with pytest.raises(SystemExit, match="figure was measured with other weights"):
        run("page")
    monkeypatch.setattr(sys.modules[__name__], "HASH", "#other")
    with pytest.raises(SystemExit, match="figure was measured with extractor not stated, not other"):
        run()


def test_an_unknown_part_is_refused(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("measure", "figures")
    assert stop.value.code == 2
    assert "figures is not known to measure; expected figure, extension" in capsys.readouterr().err
