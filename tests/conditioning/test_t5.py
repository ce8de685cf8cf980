"""T5 and CLIP through transformers: streamed block by block, equal to the whole model, read once a prompt."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from kinema.conditioning import remembered, streamed, t5
from kinema.conditioning.t5 import CLIP, T5, Place
from kinema.events import Event, Note, Phase, ignore
from kinema.schema import BadRequest

WORDS = "a red blue ball rolls right slowly".split()
LENGTH = 9
WIDTHS = (24, 20)
FOLDERS = {"t5": "google/t5-v1_1-xxl", "clip": "openai/clip-vit-large-patch14"}


def tokenizer(folder: Path, *, begin: str = "", **special: Any) -> None:
    """Whole words in a tokenizer of T5's type, or of CLIP's with a token that begins a prompt."""
    names = ["<pad>", "</s>", "<unk>", *([begin] if begin else []), *WORDS]
    if begin:
        vocabulary = {word: i for i, word in enumerate(names)}
        made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True))
    else:
        made = Tokenizer(models.Unigram([(word, -1.0) for word in names], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    template = f"{begin} $A </s>".strip()
    marks = [("</s>", 1), *([(begin, 3)] if begin else [])]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=77, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's file and both encoders beside it, as the hub has them."""
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=16, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=3, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(root / "google" / "t5-v1_1-xxl")
    tokenizer(root / "google" / "t5-v1_1-xxl")
    clip = CLIPTextConfig(
        vocab_size=16, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1
    )
    CLIPTextModel(clip).save_pretrained(root / "openai" / "clip-vit-large-patch14")
    tokenizer(root / "openai" / "clip-vit-large-patch14", begin="<s>")
    save_file({"x": torch.zeros(1)}, root / "model.safetensors")
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def place(root: Path, **named: Path) -> Place:
    return Place(root / "model.safetensors", torch.device("cpu"), named)


def copied(encoders: Path, tmp_path: Path) -> Path:
    return shutil.copytree(encoders, tmp_path / "copy")


def encode(root: Path, *prompts: str, on_event: Any = ignore) -> tuple[Tensor, Tensor]:
    return t5.encode(prompts, LENGTH, WIDTHS, place(root), on_event)


def test_streamed_states_equal_those_of_the_whole_model_with_padding_attended(encoders: Path) -> None:
    folder = encoders / "google" / "t5-v1_1-xxl"
    states, pooled = encode(encoders, "a red ball", "")
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(
        ["a red ball", ""], padding="max_length", max_length=LENGTH, return_tensors="pt"
    )
    whole = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(states, whole(ids["input_ids"]).last_hidden_state)
        masked = whole(ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
    assert not torch.allclose(states, masked, atol=1e-3)
    assert pooled.shape == (2, 20)


def test_masked_states_equal_those_of_the_whole_model_with_padding_left_out(encoders: Path) -> None:
    """And are kept apart from those with padding, also on disk; CLIP is not looked for."""
    folder = encoders / "google" / "t5-v1_1-xxl"
    encode(encoders, "a red ball")
    for _ in range(2):  # read, then remembered
        states, mask = t5.encode_masked(["a red ball", ""], LENGTH, WIDTHS[0], place(encoders), ignore)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)(
        ["a red ball", ""], padding="max_length", max_length=LENGTH, return_tensors="pt"
    )
    whole = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = whole(theirs["input_ids"], attention_mask=theirs["attention_mask"]).last_hidden_state
    assert torch.equal(mask, theirs["attention_mask"].bool())
    assert torch.equal(states, expected)
    meta = Place(None, torch.device("meta"))
    assert [tuple(x.shape) for x in t5.encode_masked(["a"], 5, 7, meta, ignore)] == [(1, 5, 7), (1, 5)]


def test_pooled_is_that_of_clip(encoders: Path) -> None:
    folder = encoders / "openai" / "clip-vit-large-patch14"
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(
        ["a red ball"], padding="max_length", max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = CLIPTextModel.from_pretrained(folder).eval()(ids["input_ids"]).pooler_output
    assert torch.equal(encode(encoders, "a red ball")[1], theirs)


def test_at_most_one_block_has_weights_at_a_time(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[torch.nn.Module] = []
    most = []

    def drop(self: Any, module: torch.nn.Module) -> None:
        most.append(sum(any(not p.is_meta for p in block.parameters()) for block in blocks))
        dropped(self, module)

    def noted(model: torch.nn.Module, some: Any, *rest: Any) -> Any:
        blocks.extend(some)
        return streamed.streamed(model, some, *rest)

    dropped = streamed._Held.drop
    monkeypatch.setattr(streamed._Held, "drop", drop)
    monkeypatch.setattr(t5, "streamed", noted)
    encode(encoders, "a blue ball")
    assert len(blocks) == 3
    assert max(most) == 1
    assert all(parameter.is_meta for block in blocks for parameter in block.parameters())


def test_a_prompt_is_read_once(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    first = encode(encoders, "a red ball", "", on_event=events.append)
    assert [e.detail for e in events if isinstance(e, Phase)] == ["T5-XXL reads the prompt", "CLIP-L reads the prompt"]
    monkeypatch.setattr(t5, "_run", lambda *_: pytest.fail("the encoder ran again"))
    again = encode(encoders, "a red ball", "")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert remembered.size().prompts == 4


def test_a_remembered_prompt_does_not_open_the_weights(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(encoders, "a red ball")
    monkeypatch.setattr(t5, "Stream", lambda *_: pytest.fail("the weights were opened"))
    assert torch.equal(encode(encoders, "a red ball")[0], first[0])


CONFIGS = {
    "too many blocks": ("t5", {"num_layers": 10**6}, "more than 20,000 weight tensors"),
    "too wide": ("t5", {"d_model": 10**6, "d_ff": 10**6}, "parameters"),
    "an unknown activation": ("t5", {"feed_forward_proj": "gated-unknown"}, "no network can be built"),
    "text as a number": ("clip", {"hidden_size": "wide"}, "config of .* is not a config of CLIP-L: .*hidden_size"),
    "a giant": ("clip", {"vocab_size": 10**12}, "parameters"),
}


@pytest.mark.parametrize(("slot", "change", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_config_of_strangers_is_refused_before_it_takes_memory(
    slot: str, change: dict[str, Any], message: str, encoders: Path, tmp_path: Path
) -> None:
    root = copied(encoders, tmp_path)
    folder = root / FOLDERS[slot]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadRequest, match=message):
        encode(root, "a red ball")


def test_settings_that_fetch_code_are_not_passed_on(encoders: Path, tmp_path: Path) -> None:
    root = copied(encoders, tmp_path)
    file = root / "google/t5-v1_1-xxl" / "config.json"
    hostile = {"attn_implementation": "stranger/kernel", "auto_map": {"AutoConfig": "stranger/code--x.Y"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | hostile))
    assert not hostile.keys() & t5.find(T5, place(root)).config.keys()
    assert torch.equal(encode(root, "a red ball")[0], encode(encoders, "a red ball")[0])


def test_a_tokenizer_never_runs_code_of_its_folder(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(encoders, tmp_path)
    folder = root / "google/t5-v1_1-xxl"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    with pytest.raises(BadRequest, match="tokenizer in .* cannot be read"):
        encode(root, "a red ball")
    assert not (tmp_path / "ran").exists()


def test_other_weights_or_another_length_read_it_again(encoders: Path) -> None:
    encode(encoders, "a red ball")
    before = remembered.size().prompts
    t5.encode(["a red ball"], LENGTH + 1, WIDTHS, place(encoders), ignore)
    assert remembered.size().prompts == before + 1  # CLIP's is kept
    file = encoders / "google" / "t5-v1_1-xxl" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: x * 2 for name, x in tensors.items()}, file)
    try:
        encode(encoders, "a red ball")
        assert remembered.size().prompts == before + 2
    finally:
        save_file(tensors, file)


def test_the_cache_is_bounded_and_the_least_recently_used_goes_first(
    encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = LENGTH * WIDTHS[0] * 4 + 20 * 4 + 1024
    monkeypatch.setenv("KINEMA_CACHE_BYTES", str(3 * one))
    for i in range(8):
        encode(encoders, f"a red ball {i}")
    assert remembered.size().bytes <= 3 * one
    monkeypatch.setenv("KINEMA_CACHE_BYTES", "many")
    with pytest.raises(BadRequest, match="KINEMA_CACHE_BYTES"):
        encode(encoders, "a blue ball")


def test_a_damaged_entry_is_read_again(encoders: Path) -> None:
    first = encode(encoders, "a red ball")[0]
    for file in remembered.folder().iterdir():
        file.write_bytes(b"nothing")
    assert torch.equal(encode(encoders, "a red ball")[0], first)


@pytest.mark.parametrize("encoder", [T5, CLIP], ids=lambda each: each.slot)
def test_a_missing_encoder_is_named_with_the_way_to_get_it(encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=rf"{encoder.title}.*hf download {encoder.hub}.*--add {encoder.slot}=PATH"):
        t5.find(encoder, Place(tmp_path / "model.safetensors", torch.device("cpu")))


def test_a_single_file_is_given_by_name_and_its_missing_tokenizer_is_named(encoders: Path, tmp_path: Path) -> None:
    file = tmp_path / "t5xxl.safetensors"
    save_file(load_file(encoders / "google" / "t5-v1_1-xxl" / "model.safetensors"), file)
    found = t5.find(T5, place(encoders, t5=file))
    assert found.weights == file
    assert found.tokenizer == encoders / "google" / "t5-v1_1-xxl"  # beside the model
    with pytest.raises(BadRequest, match="no tokenizer"):
        t5.find(T5, Place(None, torch.device("cpu"), {"t5": file}))


# -------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_next_to_the_weights_folder_comes_first(encoders: Path, tmp_path: Path) -> None:
    """The layout of Flux: text_encoder and tokenizer for CLIP, text_encoder_2 and tokenizer_2 for T5."""
    root = copied(encoders, tmp_path)
    for slot, number in (("t5", "_2"), ("clip", "")):
        shutil.move(root / FOLDERS[slot], root / f"text_encoder{number}")
    tokenizer(root / "tokenizer", begin="<s>")
    tokenizer(root / "tokenizer_2")
    assert t5.find(T5, place(root)).tokenizer == root / "tokenizer_2"
    assert t5.find(CLIP, place(root)).tokenizer == root / "tokenizer"
    assert torch.equal(encode(root, "a red ball")[0], encode(encoders, "a red ball")[0])


@pytest.mark.parametrize("encoder", [T5, CLIP], ids=lambda each: each.slot)
def test_the_tokenizer_of_the_other_encoder_is_not_taken(encoder: Any, encoders: Path, tmp_path: Path) -> None:
    root, other = copied(encoders, tmp_path), "<s>" if encoder is T5 else ""
    folder = root / FOLDERS[encoder.slot]
    tokenizer(folder, begin=other)
    advice = rf"put {' and '.join(encoder.vocabulary)}, or .* type {encoder.model}.*--include {encoder.vocabulary[-1]}"
    with pytest.raises(BadRequest, match=rf"{encoder.title} has no tokenizer.*{advice}"):
        t5.find(encoder, place(root))
    (folder / "tokenizer.json").unlink()
    for name in (CLIP if encoder is T5 else T5).vocabulary:
        (folder / name).write_text("x")
    with pytest.raises(BadRequest, match=f"{encoder.title} has no tokenizer"):
        t5.find(encoder, place(root))
    for name in encoder.vocabulary:
        (folder / name).write_text("x")
    assert t5.find(encoder, place(root)).tokenizer == folder


def test_a_tokenizer_of_the_other_type_in_a_folder_with_files_of_both_is_refused(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(encoders, tmp_path)
    folder = root / FOLDERS["t5"]
    (folder / "tokenizer.json").unlink()
    for name, text in (
        ("spiece.model", ""),
        ("vocab.json", '{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}'),
        ("merges.txt", "#version: 0.2"),
        ("tokenizer_config.json", '{"tokenizer_class": "CLIPTokenizer"}'),
    ):
        (folder / name).write_text(text)
    monkeypatch.setattr(t5, "_installed", lambda _: True)
    with pytest.raises(BadRequest, match="tokenizer in .* is of the type BPE; expected Unigram, as T5-XXL has"):
        encode(root, "a red ball")


def test_an_old_tokenizer_file_that_does_not_name_its_type_is_clips(encoders: Path, tmp_path: Path) -> None:
    root = copied(encoders, tmp_path)
    file = root / FOLDERS["clip"] / "tokenizer.json"
    content = json.loads(file.read_text())
    del content["model"]["type"]
    file.write_text(json.dumps(content))
    assert t5.find(CLIP, place(root)).tokenizer == file.parent


def test_a_tokenizer_that_is_changed_is_read_again(encoders: Path, tmp_path: Path) -> None:
    root = copied(encoders, tmp_path)
    t5.find(T5, place(root))
    tokenizer(root / FOLDERS["t5"], begin="<s>")
    with pytest.raises(BadRequest, match="T5-XXL has no tokenizer"):
        t5.find(T5, place(root))


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(encoders: Path, tmp_path: Path) -> None:
    root = copied(encoders, tmp_path)
    tokenizer(root / FOLDERS["t5"], extra_special_tokens=[f"<{i}>" for i in range(10)])
    with pytest.raises(BadRequest, match="has the token id 19; .* has embeddings of 16 tokens"):
        encode(root, "a red ball")


def test_a_tokenizer_without_a_padding_token_is_refused(encoders: Path, tmp_path: Path) -> None:
    root = copied(encoders, tmp_path)
    tokenizer(root / FOLDERS["t5"], pad_token=None)
    with pytest.raises(BadRequest, match="tokenizer in .* has no padding token"):
        encode(root, "a red ball")


def test_a_spiece_model_names_the_packages_that_it_needs(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would ask for tiktoken, which does not read it."""
    root = copied(encoders, tmp_path)
    for file in (root / FOLDERS["t5"]).glob("tokenizer*"):
        file.unlink()
    (root / FOLDERS["t5"] / "spiece.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(BadRequest, match="is a spiece.model, which needs sentencepiece.*pip install sentencepiece"):
        encode(root, "a red ball")


# ----------------------------------------------------------------------------- weights and configs


def quantised(dtype: torch.dtype, name: str) -> Any:
    return lambda tensors: {**tensors, name: tensors[name].to(dtype)}


QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"
FILES = {
    "int8": ("t5", quantised(torch.int8, QUERY), f"dtypes: {QUERY} is int8, expected"),
    "scales": ("t5", lambda t: {**t, "a.scale_weight": torch.ones(1)}, "unexpected: a.scale_weight"),
    "no query": ("t5", lambda t: {n: x for n, x in t.items() if n != QUERY}, f"missing: {QUERY}"),
    "turned": ("t5", lambda t: {**t, QUERY: t[QUERY].T.contiguous()}, f"shapes: {QUERY} is 24×15, expected 15×24"),
    "int8 clip": ("clip", lambda t: {n: x.to(torch.int8) for n, x in t.items()}, "dtypes: .* is int8"),
    "no layer": ("clip", lambda t: {n: x for n, x in t.items() if "layers.1." not in n}, "missing: .*encoder.layers.1"),
}


@pytest.mark.parametrize(("slot", "change", "message"), FILES.values(), ids=FILES.keys())
def test_quantised_missing_and_unexpected_weights_are_refused_before_the_encoder_runs(
    slot: str, change: Any, message: str, encoders: Path, tmp_path: Path
) -> None:
    root = copied(encoders, tmp_path)
    file = root / FOLDERS[slot] / "model.safetensors"
    save_file({name: x.clone() for name, x in change(load_file(file)).items()}, file)
    with pytest.raises(BadRequest, match=rf"{FOLDERS[slot]} is not .* as its config describes it; .*{message}"):
        encode(root, "a red ball")


def test_floats_of_8_bits_without_scales_are_read_as_they_are(encoders: Path, tmp_path: Path) -> None:
    """As in the widely used files of T5-XXL in fp8."""
    rounded, narrow = copied(encoders, tmp_path / "rounded"), copied(encoders, tmp_path / "narrow")
    for root in (rounded, narrow):
        file = root / FOLDERS["t5"] / "model.safetensors"
        tensors = {name: x.clone().to(torch.float8_e4m3fn) for name, x in load_file(file).items()}
        save_file(tensors if root is narrow else {name: x.float() for name, x in tensors.items()}, file)
    assert torch.equal(encode(narrow, "a red ball")[0], encode(rounded, "a red ball")[0])


SIZES = {
    "fewer blocks": ("t5", {"num_layers": 2}, r"unexpected: encoder\.block\.2"),
    "more blocks": ("t5", {"num_layers": 4}, r"missing: encoder\.block\.3"),
    "wider heads": ("t5", {"d_kv": 6}, "SelfAttention.k.weight is 15×24, expected 18×24"),
    "fewer layers": ("clip", {"num_hidden_layers": 1}, r"unexpected: .*layers\.1"),
    "a wider layer": ("clip", {"intermediate_size": 30}, "fc1.weight is 28×20, expected 30×20"),
    "large": ("clip", {"vocab_size": 2**30}, f"token_embedding.weight is 16×20, expected {2**30}×20"),
    "few positions": ("clip", {"max_position_embeddings": 76}, "reads 76 tokens; expected a CLIP-L that reads 77"),
    "no number": ("clip", {"eos_token_id": [1, 2]}, "eos_token_id in .*config.json is .*; expected a single value"),
    "text": ("clip", {"text_config": "small"}, "text_config of .* is 'small'; expected names and values in braces"),
}


@pytest.mark.parametrize(("slot", "change", "message"), SIZES.values(), ids=SIZES.keys())
def test_a_config_of_other_sizes_than_the_weights_is_refused_before_it_takes_memory(
    slot: str, change: dict[str, Any], message: str, encoders: Path, tmp_path: Path
) -> None:
    root = copied(encoders, tmp_path)
    file = root / FOLDERS[slot] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadRequest, match=message):
        encode(root, "a red ball")


def test_other_parts_of_the_published_networks_are_left_alone(encoders: Path, tmp_path: Path) -> None:
    root, one = copied(encoders, tmp_path), torch.ones(1)
    others = {
        "t5": {"decoder.block.0.layer.0.SelfAttention.q.weight": one, "lm_head.weight": one},
        "clip": {
            "vision_model.post_layernorm.weight": one, "visual_projection.weight": one, "text_projection.weight": one,
            "logit_scale": one, "text_model.embeddings.position_ids": torch.arange(77),
        },
    }  # fmt: skip
    for slot, more in others.items():
        file = root / FOLDERS[slot] / "model.safetensors"
        tensors = {name.removeprefix("text_model."): x for name, x in load_file(file).items()}
        if slot == "clip":  # both names of CLIP's weights, with its prefix and without
            tensors = {f"text_model.{name}": x for name, x in tensors.items()}
        save_file({name: x.clone() for name, x in {**tensors, **more}.items()}, file)
    for a, b in zip(encode(root, "a red ball"), encode(encoders, "a red ball"), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------- cache and length


@pytest.mark.parametrize(
    "content",
    [
        {"other": torch.zeros(LENGTH, WIDTHS[0])},
        {"out": torch.zeros(LENGTH, WIDTHS[0] + 1), "tokens": torch.ones(1, dtype=torch.int64)},
        {"out": torch.zeros(LENGTH, WIDTHS[0])},
    ],
    ids=["another name", "another shape", "no count"],
)
def test_an_entry_of_another_content_is_read_again(content: dict[str, Tensor], encoders: Path) -> None:
    first = encode(encoders, "a red ball")
    files = list(remembered.folder().iterdir())
    for file in files:
        save_file(content, file)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(encode(encoders, "a red ball"), first, strict=True))
    assert sorted(remembered.folder().iterdir()) == sorted(files)


@pytest.mark.parametrize("limit", ["many", "²"])
def test_a_bad_limit_of_the_cache_is_refused_before_the_encoders_run(
    limit: str, encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(t5, "_run", lambda *_: pytest.fail("the encoder ran"))
    monkeypatch.setenv("KINEMA_CACHE_BYTES", limit)
    with pytest.raises(BadRequest, match="KINEMA_CACHE_BYTES is"):
        encode(encoders, "a blue ball")


def test_a_prompt_that_t5_cuts_is_noted_once_also_when_it_is_remembered(encoders: Path) -> None:
    long = "a red ball " * 4
    for _ in range(2):
        events: list[Event] = []
        encode(encoders, long, long, "a ball", on_event=events.append)
        notes = [event.message for event in events if isinstance(event, Note)]
        assert notes == [f"T5-XXL reads the first {LENGTH} of 13 tokens of the prompt {long!r}"]
    fits = "a red ball rolls right slowly a ball"  # eight words and the end token
    encode(encoders, fits, on_event=lambda event: pytest.fail(str(event)) if isinstance(event, Note) else None)


def test_an_encoder_of_another_width_is_refused(encoders: Path) -> None:
    with pytest.raises(BadRequest, match="24 features; the model needs 4096"):
        t5.encode(["a"], LENGTH, (4096, 20), place(encoders), ignore)


def test_on_the_meta_device_nothing_is_looked_for() -> None:
    states, pooled = t5.encode(["a", ""], 512, (4096, 768), Place(None, torch.device("meta")), ignore)
    assert states.shape == (2, 512, 4096)
    assert pooled.shape == (2, 768)
