"""Conditioning of weighted, scheduled and long prompts against references written from the two tools' rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.conditioning.clip_text import ClipText, ClipTextSize
from kinema.conditioning.prompts.encoding import Encoder, Reading, encode
from kinema.conditioning.prompts.rows import Token, rows_of
from kinema.schema import BadRequest

SIZE = ClipTextSize(width=32, layers=3, heads=2, mlp=64, vocabulary=600, length=77)
POOLED = replace(SIZE, activation="gelu", projection=24)
LONG = "(a red ball:1.3), cat on [dog], " + "sky, in tree, " * 12 + "((red)) BREAK (cat:0.4)"


def network_of(size: ClipTextSize, seed: int = 0) -> ClipText:
    """A random network whose states have a mean, which AUTOMATIC1111 restores."""
    torch.manual_seed(seed)
    network = ClipText(size).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    network.text_model.final_layer_norm.bias.add_(1)
    return network


def states(network, tokenizer, row, pad=None, *, skip=0, norm=True):
    """The states of one row, 77×C, in float64."""
    fill = tokenizer.end if pad is None else pad
    ids = [tokenizer.begin, *(token.id for token in row), tokenizer.end]
    ids += [fill] * (77 - len(ids))
    return network(torch.tensor([ids]), tokenizer.end, skip=skip, norm=norm)[0][0].double()


def a1111(network, tokenizer, texts, pad=None, **reading):
    """Written from the rule: chunk by chunk, all texts times their weights, then the mean of before."""
    chunks = []
    for at in range(max(len(rows) for rows in texts)):
        batch = [rows[at] if at < len(rows) else [] for rows in texts]
        z = torch.stack([states(network, tokenizer, row, pad, **reading) for row in batch])
        before = z.mean()
        for number, row in enumerate(batch):
            for position, token in enumerate(row):
                z[number, position + 1] *= token.weight
        chunks.append(z * (before / z.mean()))
    return torch.cat(chunks, dim=1)


def comfy(network, tokenizer, rows, pad=None, **reading):
    """Written from the rule: each state on the line from the empty prompt's through its own."""
    empty, found = states(network, tokenizer, [], pad, **reading), []
    for row in rows:
        z = states(network, tokenizer, row, pad, **reading)
        for position, token in enumerate(row):
            z[position + 1] = empty[position + 1] + token.weight * (z[position + 1] - empty[position + 1])
        found.append(z)
    return torch.cat(found)[None]


def difference(found, wanted) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def test_a1111_weights_of_a_long_prompt(tokenizer, words):
    network = network_of(SIZE)
    rows = rows_of("a1111", LONG, words())
    assert len(rows) == 3
    ((context, pooled),) = encode([Encoder(network, SIZE, None, {})], tokenizer, [rows], "a1111", Reading(), [1])
    assert context.shape == (1, 3 * 77, 32)
    assert pooled is None
    assert difference(context, a1111(network, tokenizer, [rows])) <= 1e-6


def test_comfy_weights_of_a_long_prompt(tokenizer, words):
    network = network_of(SIZE)
    rows = rows_of("comfy", LONG, words())
    ((context, _),) = encode([Encoder(network, SIZE, None, {})], tokenizer, [rows], "comfy", Reading(), [1])
    assert difference(context, comfy(network, tokenizer, rows)) <= 1e-6


@pytest.mark.parametrize(("syntax", "rule"), [("a1111", a1111), ("comfy", comfy)])
def test_both_encoders_of_sdxl_are_weighted_and_the_pooled_embedding_is_not(syntax, rule, tokenizer, words):
    one, two = network_of(SIZE), network_of(POOLED, 1)
    rows = rows_of(syntax, "a (red:1.5) ball", words())
    encoders = [Encoder(one, SIZE, None, {}), Encoder(two, POOLED, 0, {})]
    ((context, pooled),) = encode(encoders, tokenizer, [rows], syntax, Reading(penultimate=True), [1])
    own = [rows] if syntax == "a1111" else rows
    reading = {"skip": 1, "norm": False}
    wanted = torch.cat([rule(one, tokenizer, own, **reading), rule(two, tokenizer, own, 0, **reading)], dim=-1)
    assert difference(context, wanted) <= 1e-6
    plain = [[replace(token, weight=1.0) for token in row] for row in rows]
    ((_, without),) = encode(encoders, tokenizer, [plain], syntax, Reading(penultimate=True), [1])
    assert torch.equal(pooled, without)


def test_texts_of_a_schedule_share_the_mean_and_are_padded_to_the_longest(tokenizer, words):
    """Three of "(red:2)" and two of a text of two rows, as of [(red:2)|…] over five steps."""
    network = network_of(SIZE)
    first, second = rows_of("a1111", "(red:2)", words()), rows_of("a1111", "cat BREAK [dog]", words())
    found = encode([Encoder(network, SIZE, None, {})], tokenizer, [first, second], "a1111", Reading(), [3, 2])
    wanted = a1111(network, tokenizer, [first, second, first, second, first])
    assert difference(found[0][0], wanted[:1]) <= 1e-6
    assert difference(found[1][0], wanted[1:2]) <= 1e-6
    alone = a1111(network, tokenizer, [first])
    assert difference(found[0][0][:, :77], alone) > 1e-4


def test_without_weights_all_syntaxes_give_the_same_bits(tokenizer, words):
    network = network_of(SIZE)
    encoder = [Encoder(network, SIZE, None, {})]
    found = [
        encode(encoder, tokenizer, [rows_of(syntax, "a red ball", words())], syntax, Reading(), [1])[0][0]
        for syntax in ("a1111", "comfy", "plain")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_vectors_of_an_embedding_replace_those_of_its_tokens(tokenizer, words):
    """Vectors that are those of "red" and "ball" give the conditioning of "red ball"."""
    network = network_of(SIZE)
    vocabulary = network.text_model.embeddings.token_embedding.weight
    (red,), (ball,) = tokenizer.tokens("ball")[-1:], tokenizer.tokens("cat")[-1:]
    vectors = {"mine": vocabulary[[red, ball]]}
    rows = rows_of("a1111", "a (mine:1.2) dog", words(mine=2))
    weights = [token.weight for token in rows[0]]
    assert weights.count(1.2) == 2
    ((context, _),) = encode([Encoder(network, SIZE, None, vectors)], tokenizer, [rows], "a1111", Reading(), [1])
    same = [[Token(red if t.vector == ("mine", 0) else ball if t.vector else t.id, t.weight) for t in rows[0]]]
    ((wanted, _),) = encode([Encoder(network, SIZE, None, {})], tokenizer, [same], "a1111", Reading(), [1])
    assert torch.equal(context, wanted)


def test_a_vocabulary_larger_than_the_encoder_raises(tokenizer, words):
    small = replace(SIZE, vocabulary=300)
    with pytest.raises(BadRequest, match="the vocabulary has token"):
        encode([Encoder(network_of(small), small, None, {})], tokenizer, [[[]]], "plain", Reading(), [1])
