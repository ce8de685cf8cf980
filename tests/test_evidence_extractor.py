"""The extractor of the evidence: what it is trained on, what its features see, and users' extractors."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from kinema.checkpoints import files
from kinema.data import playroom
from kinema.schema import BadRequest

ROOT = Path(__file__).parents[1]
USERS = """
not_callable = 3
def mean(video): return video.mean((3, 4)).flatten(1)
def one(video): return video.mean()
"""


@pytest.fixture
def module(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / "users_extractor.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_extractor", raising=False)
    return importlib.import_module("benchmarks.evidence.extractor")


# ---------------------------------------------------------------------------------------- training


def test_classes_are_what_the_caption_says(module):
    video, classes = module.clips("train", (5,), 0, 12)
    assert video.shape == (12, 3, 16, 32, 32)
    for i in range(12):
        meaning = playroom.parse(playroom.sample([5, i], frames=1, height=8, width=8).caption)
        named = {name: values[classes[name][i]] for name, values in module.LABELS.items()}
        way = "" if named["direction"] == "none" else f" {named['direction']}"
        assert (named["colour"], named["shape"], named["motion"] + way) == (
            meaning.colour,
            meaning.shape,
            meaning.motion,
        )


@pytest.fixture
def train(module, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "STANDARD", 1)

    def run(name, seed=0):
        module.train(3, seed, tmp_path / name, tmp_path)
        return files.weight_hash(tmp_path / name)

    return run


def test_a_seed_decides_the_weights_and_the_file_says_how_they_were_trained(module, train, tmp_path):
    assert train("a.safetensors") == train("b.safetensors") != train("c.safetensors", seed=1)
    said = json.loads(files.metadata(tmp_path / "a.safetensors")["evidence-extractor"])
    assert (said["steps"], said["clips"], said["seed"], said["split"]) == (3, 12, 0, "train")
    assert module.load(tmp_path / "a.safetensors")[1] == files.weight_hash(tmp_path / "a.safetensors")


def test_an_interrupted_training_resumes_to_the_same_weights(module, train, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "KEPT", 2)
    whole, clips = train("whole.safetensors"), module.clips

    drawn = []

    def interrupted(split, seed, first, last):
        if first == 8:
            raise KeyboardInterrupt
        return clips(split, seed, first, last)

    def counted(*each):
        drawn.append(each)
        return clips(*each)

    monkeypatch.setattr(module, "clips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("resumed.safetensors")
    monkeypatch.setattr(module, "clips", counted)
    assert train("other.safetensors", seed=1) != whole
    assert len(drawn) == 3 + 1
    assert train("resumed.safetensors") == whole
    assert len(drawn) == 3 + 1 + 1 + 1
    assert not list(tmp_path.glob("*.pt"))


# ----------------------------------------------------------------------------------- shipped weights


def test_shipped_weights_are_small_and_from_the_training_share(module):
    assert module.WEIGHTS.stat().st_size < 300_000
    said = json.loads(files.metadata(module.WEIGHTS)["evidence-extractor"])
    assert (said["split"], said["steps"], said["seed"]) == ("train", module.STEPS, 0)


def test_features_are_standardised_over_real_clips_and_do_not_depend_on_the_batch(module):
    extract, _ = module.load()
    video, _ = module.clips("train", (6,), 0, 96)
    with torch.no_grad():
        found = extract(video)
        assert found.shape == (96, 96)
        assert torch.allclose(found[:3], extract(video[:3]), atol=1e-4)
    assert found.mean(0).abs().mean() < 0.2
    assert found.var(0).mean() == pytest.approx(1, abs=0.3)


def test_shipped_weights_name_what_unseen_clips_show(module):
    found = module.accuracy(module.network_of(module.WEIGHTS), 96, 1)
    assert found["colour"].count == 96
    # Twice the share of the commonest answer or more.
    assert all(found[name].mean > least for name, least in {"colour": 0.8, "shape": 0.5, "direction": 0.8}.items())


def test_features_see_frames_out_of_order_still_blurred_or_flickering(module):
    found = module.sensitivity(module.named_extractor(), 64, 2)
    same = found.pop("none")
    assert same.kvd.low < 0 < same.kvd.high
    slight = {"blurred (3×3 mean)", "brightness flickers (0.03)"}
    for name in slight:
        # The same clips before the change, so that their difference is far more certain than either.
        each = found.pop(name)
        assert each.kvd.mean > same.kvd.mean + 0.1, name
        assert each.frechet.mean > same.frechet.mean + 2, name
    assert len(found) == 3
    for name, each in found.items():
        assert each.kvd.low > same.kvd.high, name
        assert each.frechet.low > same.frechet.high, name


def test_changes_keep_what_they_say(module):
    video, _ = module.clips("train", (7,), 0, 2)
    changed = {name: change(video, torch.Generator().manual_seed(0)) for name, change in module.CHANGES.items()}
    assert all(each.shape == video.shape for each in changed.values())
    by_brightness = [each.mean((1, 3, 4)).sort(1).values for each in (changed["frames shuffled"], video)]
    assert torch.allclose(*by_brightness)
    assert not torch.equal(changed["frames shuffled"], video)
    assert changed["frame 0 repeated"].diff(dim=2).abs().max() == 0
    flat = torch.zeros(400, 3, 16, 1, 1)
    noise = module.flickering(flat, torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert torch.allclose(module.blurred(flat.expand(-1, -1, -1, 4, 4) + 0.5, torch.Generator()), torch.tensor(0.5))


# ------------------------------------------------------------------------------------ other extractors


def test_a_users_extractor_is_found_by_module_and_function(module):
    named = module.named_extractor("users_extractor:mean#sha256:12ab")
    assert (named.name, named.weights) == ("users_extractor:mean", "sha256:12ab")
    assert named.extract(torch.zeros(2, 3, 4, 8, 8)).shape == (2, 12)
    assert module.named_extractor("users_extractor:mean").weights == "not stated"
    assert module.named_extractor().weights == files.weight_hash(module.WEIGHTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inception", "extractor is 'inception'; expected playroom or package.module:function"),
        ("users_extractor:", "extractor is 'users_extractor:'; expected"),
        (".here:mean", "extractor is '.here:mean'; expected"),
        (
            "no_such_module:mean",
            "'no_such_module:mean' cannot be imported .No module named 'no_such_module'.; expected",
        ),
        ("users_extractor:median", "users_extractor has no function 'median'; expected"),
        ("users_extractor:not_callable", "users_extractor has no function 'not_callable'; expected"),
    ],
)
def test_a_name_without_an_extractor_is_an_error_that_says_what_was_expected(module, text, said):
    with pytest.raises(BadRequest, match=said):
        module.named_extractor(text)


def test_an_extractor_that_does_not_return_features_is_an_error(module):
    with pytest.raises(BadRequest, match=r"'users_extractor:one' returned \[\] for 2 clips; expected B×D"):
        module.named_extractor("users_extractor:one").extract(torch.zeros(2, 3, 4, 8, 8))


def test_the_command_measures_a_users_extractor(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["extractor", "--extractor", "users_extractor:mean", "--clips", "8"])
    assert module.main() == 0
    printed = capsys.readouterr().out
    assert "users_extractor:mean (weights not stated)" in printed
    rows = [line for line in printed.splitlines() if line.endswith("| 8, 8 |")]
    assert len(rows) == len(module.CHANGES)
    monkeypatch.setattr(sys, "argv", ["extractor", "--steps", "3"])
    with pytest.raises(SystemExit):
        module.main()
    assert "--steps requires --train" in capsys.readouterr().err
