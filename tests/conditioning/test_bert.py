from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from kinema.conditioning import bert
from kinema.schema import BadRequest

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "rolls", "right"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights in the layout of the hub's folders."""
    transformers = pytest.importorskip("transformers")  # imported here because it takes seconds
    where = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(where)
    (where / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(where / "vocab.txt")).save_pretrained(where)
    return where


def test_each_text_becomes_one_padded_sequence(folder: Path) -> None:
    text, keep = bert.load(str(folder), offline=True).encode(["a red ball", ""], 8)
    assert text.shape == (2, 8, 16)
    assert keep.sum(1).tolist() == [5, 2]  # the words between [CLS] and [SEP]
    assert not text.requires_grad


def test_the_same_text_gives_the_same_embedding_alone_and_in_a_batch(folder: Path) -> None:
    encoder = bert.load(str(folder), offline=True)
    both, _ = encoder.encode(["a red ball rolls right", "ball"], 8)
    alone, _ = encoder.encode(["a red ball rolls right"], 8)
    torch.testing.assert_close(both[:1], alone)
    assert not torch.allclose(both[0, :3], both[1, :3])


def test_a_long_text_is_cut_to_length(folder: Path) -> None:
    text, keep = bert.load(str(folder), offline=True).encode(["red " * 50], 8)
    assert text.shape[1] == 8
    assert bool(keep.all())


def test_missing_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(BadRequest, match="cannot be loaded or downloaded") as refused:
        bert.load(str(tmp_path / "missing"), offline=True)
    assert "\n" not in str(refused.value)


def test_a_folder_with_pickled_weights_only_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadRequest):
        bert.load(str(tmp_path), offline=True)


def test_a_tokenizer_never_runs_code_of_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    changes = {
        "config.json": {"model_type": "own"},
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}},
    }
    for name, change in changes.items():
        (root / name).write_text(json.dumps(json.loads((root / name).read_text()) | change))
    (root / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    with pytest.raises(BadRequest, match="cannot be loaded"):
        bert.load(str(root), offline=True)
    assert not (tmp_path / "ran").exists()


def test_without_transformers_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadRequest, match="transformers"):
        bert.load("anything", offline=True)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_name_is_downloaded_by_our_hub_module(folder, monkeypatch, offline):
    asked = []

    def fetch(name, offline, _patterns):
        asked.append((name, offline))
        return folder

    monkeypatch.setattr("kinema.checkpoints.hub.fetch", fetch)
    text, _ = bert.load("someone/bert", device="cpu", offline=offline).encode(["a red ball"], 8)
    assert asked == [("someone/bert", offline or None)]
    assert text.shape[:2] == (1, 8)
