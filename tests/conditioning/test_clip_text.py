"""CLIP text encoders against transformers, the tokenizer, and prompts longer than a row."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema.conditioning import clip_text
from kinema.conditioning.clip_text import ClipText, ClipTextSize, ClipTokenizer, WordTokenizer, encode, rows
from kinema.schema import BadRequest

SIZE = ClipTextSize(width=32, layers=3, heads=2, mlp=64, vocabulary=60, length=20)
POOLED = replace(SIZE, activation="gelu", projection=24)
WORDS = WordTokenizer(tuple("abcdefghijklmnop"))


def reference(size: ClipTextSize, network: ClipText) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    kind = transformers.CLIPTextModelWithProjection if size.projection else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        projection_dim=size.projection or 512,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.length,
        hidden_act=size.activation,
        eos_token_id=WORDS.end,
        bos_token_id=WORDS.begin,
    )
    result = kind(config).eval()
    prefix = "" if size.projection else "text_model."  # transformers 5 has no prefix in this class
    result.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in network.state_dict().items()})
    return result


def randomised(size: ClipTextSize) -> ClipText:
    torch.manual_seed(0)
    network = ClipText(size)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [SIZE, POOLED], ids=["vit-l", "big-g"])
@pytest.mark.parametrize("skip", [0, 1])
def test_states_and_pooled_equal_transformers(size, skip):
    network = randomised(size)
    oracle = reference(size, network)
    ids = rows(WORDS, "a b c d e", size.length)
    expected = oracle(ids, output_hidden_states=True)
    final = dict(oracle.named_modules())[next(n for n, _ in oracle.named_modules() if n.endswith("final_layer_norm"))]
    states, pooled = network(ids, WORDS.end, skip=skip)
    assert (states - final(expected.hidden_states[-1 - skip])).abs().max() <= 1e-5
    raw, _ = network(ids, WORDS.end, skip=skip, norm=False)
    assert (raw - expected.hidden_states[-1 - skip]).abs().max() <= 1e-5
    if size.projection:
        assert (pooled - expected.text_embeds).abs().max() <= 1e-5


def test_a_long_prompt_becomes_rows_with_start_and_end_tokens():
    text = "a b c d e f g h i j k l m n o p a b c d e f"  # 22 words, 18 to a row
    ids = rows(WORDS, text, SIZE.length)
    assert ids.shape == (2, SIZE.length)
    assert ids[:, 0].tolist() == [WORDS.begin] * 2
    assert ids[0, -1] == WORDS.end
    assert ids[1, 5:].eq(WORDS.end).all()
    tokens = [WORDS.tokens(text)[i] for i in range(22)]
    assert [*ids[0, 1:-1].tolist(), *ids[1, 1:5].tolist()] == tokens


def test_rows_of_a_long_prompt_are_encoded_separately_and_concatenated():
    network = randomised(SIZE)
    first, second = "a b c d e f g h i j k l m n o p a b", "c d e f"
    whole, _ = encode([(network, SIZE, None)], WORDS, f"{first} {second}")
    parts = [encode([(network, SIZE, None)], WORDS, text)[0] for text in (first, second)]
    assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-6)


def test_an_empty_prompt_is_one_row_with_the_given_padding():
    ids = rows(WORDS, "", SIZE.length, pad=0)
    assert ids.tolist() == [[WORDS.begin, WORDS.end, *[0] * 18]]


def test_two_encoders_are_concatenated_and_the_second_pools():
    one, two = randomised(SIZE), randomised(POOLED)
    states, pooled = encode([(one, SIZE, None), (two, POOLED, 0)], WORDS, "a b", penultimate=True)
    assert states.shape == (1, 20, 64)
    assert pooled.shape == (1, 24)
    assert torch.equal(states[..., :32], one(rows(WORDS, "a b", 20), WORDS.end, skip=1, norm=False)[0])


# ------------------------------------------------------------------------------------- vocabulary


def write_vocabulary(folder):
    """Write a vocabulary of a small alphabet and two merges in CLIP's files."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), ",</w>", "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return words


def test_a_vocabulary_next_to_the_weights_is_found_and_used(tmp_path):
    pytest.importorskip("transformers")
    words = write_vocabulary(tmp_path / "tokenizer")
    tokenizer = ClipTokenizer(clip_text.find_vocabulary(tmp_path / "weights.safetensors"))
    found = [words[i] for i in tokenizer.tokens("Cat, ac")]
    assert found == ["cat</w>", ",</w>", "a", "c</w>"]
    assert words[tokenizer.begin] == "<|startoftext|>"
    assert words[tokenizer.end] == "<|endoftext|>"


def test_a_long_prompt_is_tokenized_completely(tmp_path):
    pytest.importorskip("transformers")
    write_vocabulary(tmp_path)
    assert len(ClipTokenizer(tmp_path).tokens("cat " * 200)) == 200


def test_a_missing_vocabulary_is_named(tmp_path, monkeypatch):
    def gone(*_args, **_options):
        raise BadRequest("offline")

    monkeypatch.setattr(clip_text.hub, "fetch", gone)
    with pytest.raises(BadRequest, match=r"vocab.json and merges.txt.*openai/clip-vit-large-patch14"):
        clip_text.find_vocabulary(tmp_path / "weights.safetensors")


def test_offline_only_the_cache_is_searched_for_a_vocabulary(monkeypatch):
    asked = []

    def gone(*_args, offline, **_options):
        asked.append(offline)
        raise BadRequest("gone")

    monkeypatch.setattr(clip_text.hub, "fetch", gone)
    for offline in (True, False):
        with pytest.raises(BadRequest, match="in the hub's cache"):
            clip_text.find_vocabulary(None, offline=offline)
    assert asked == [True, True, None]


def test_a_damaged_vocabulary_is_named(tmp_path):
    write_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(BadRequest, match="vocabulary in .* is damaged"):
        _ = ClipTokenizer(tmp_path).end


@pytest.mark.parametrize("files", [("vocab.json", "merges.txt"), ("tokenizer.json",)], ids=["published", "saved"])
def test_tokens_equal_transformers(files, tmp_path):
    """On words, contractions, digits, special tokens, other scripts, symbols and unusual white space."""
    transformers = pytest.importorskip("transformers")
    write_vocabulary(tmp_path / "all")
    expected = transformers.CLIPTokenizer.from_pretrained(str(tmp_path / "all"))
    expected.save_pretrained(str(tmp_path / "all"))
    folder = tmp_path / "some"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes((tmp_path / "all" / name).read_bytes())
    tokenizer = ClipTokenizer(folder)
    for text in (
        "a red ball rolls right",
        "  Don't   stop: it's 2024!!! we've I'm they'll he'd 'Re",
        "\u00dcn\u00efc\u00f6d\u00e9 e\u0301 \u6f22\u5b57 \U0001f642\U0001f44d\U0001f3fd",
        "\u0130stanbul \u01c5 \ufb01 \u00bd \u2167 \u0663",
        "<|endoftext|> x <|startoftext|>hi",
        "a\tb\nc\u00a0d (masterpiece:1.2), best_quality--ar",
        "",
    ):
        assert tokenizer.tokens(text) == expected(text, add_special_tokens=False)["input_ids"], text
    assert (tokenizer.begin, tokenizer.end) == (expected.bos_token_id, expected.eos_token_id)
