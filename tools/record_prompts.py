"""Record how AUTOMATIC1111 and ComfyUI read prompts: python tools/record_prompts.py A1111 COMFY [OUTPUT]

A1111 is a git directory with the commit `A1111` (the history of github.com/lllyasviel/stable-diffusion-webui-forge has
it: version 1.10 of AUTOMATIC1111/stable-diffusion-webui), COMFY one of github.com/Comfy-Org/ComfyUI. Their parsers run
on `PROMPTS` generated prompts, with a small vocabulary of CLIP's kind; what they need around them is replaced. Needs
the packages lark (1.1.2, as AUTOMATIC1111) and transformers. Also prints the largest difference between the
conditioning that the two tools and Kinema compute with a small random text encoder.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import types
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "conditioning" / "prompts" / "recorded" / "prompts.json"
A1111, COMFY = "e26abf87ecd1eefd9ab0a198eee56f9c643e4001", "a125cd84b054a57729b5eecab930ca9408719832"
PROMPTS, STEPS, TEXTS = 200, 12, 3
"""Of a prompt's texts over the steps, the rows of at most `TEXTS` are recorded."""
WORDS = "a red ball rolls right cat dog of on in oil painting, sharp, 4k, don't, best_quality, tree-house, sky".split()
MERGES = "r e,b a,ba l,bal l</w>,re d</w>,c a,ca t</w>,d o,do g</w>,s k,sk y</w>,o n</w>,i n</w>,t r,tr e,tre e</w>"


# ------------------------------------------------------------------------------------------ inputs


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens of all bytes and of a few words, and the merges that give the words."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    merges = MERGES.split(",")
    names = [*letters, *(x + "</w>" for x in letters), *(x.replace(" ", "") for x in merges)]
    return {name: at for at, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}, merges


def text(draw: random.Random, depth: int, *, broken: bool) -> str:
    """A random prompt; ``broken`` ones also have brackets that do not match, and signs outside brackets."""
    parts = []
    for _ in range(draw.choice((1, 2, 3, 5))):
        kind = draw.random()
        inner = (lambda: text(draw, depth - 1, broken=broken)) if depth else (lambda: draw.choice(WORDS))
        number = draw.choice(("1.3", "0.5", ".7", "2", " 1.1 ", "-0.4", "1", "0"))
        when = draw.choice(("0.5", "0.25", "3", " 7", ".3 ", "1.0", "20", "-1", "0", "1e0"))
        if kind < 0.4 or not depth:
            parts.append(" ".join(draw.choice(WORDS) for _ in range(draw.choice((1, 2, 4)))))
        elif kind < 0.5:
            parts.append(f"({inner()}:{number})")
        elif kind < 0.58:
            parts.append(f"({inner()})")
        elif kind < 0.64:
            parts.append(f"[{inner()}]")
        elif kind < 0.76:
            parts.append(draw.choice((f"[{inner()}:{inner()}:{when}]", f"[{inner()}:{when}]", f"[{inner()}::{when}]")))
        elif kind < 0.86:
            parts.append(f"[{'|'.join([inner(), *(draw.choice((inner(), '')) for _ in range(draw.choice((1, 2))))])}]")
        elif kind < 0.9:
            parts.append(draw.choice(("\\(", "\\)", "\\[", "\\]", "\\\\")) + draw.choice(WORDS))
        elif broken:
            parts.append(draw.choice(("(", ")", "[", "]", ":", "|", "((", "]]", ":1.2)", ":0.5]", "\\")))
    return draw.choice((" ", ", ", "")).join(parts)


def prompts() -> list[str]:
    draw = random.Random(24)
    found = []
    for number in range(PROMPTS):
        prompt = text(draw, 3, broken=number % 4 == 3)
        if number % 5 == 0:  # long: several rows
            prompt = ", ".join([prompt, *(text(draw, 1, broken=False) for _ in range(draw.choice((3, 7))))])
        if number % 7 == 0 and number % 4 != 3:  # in brackets, AUTOMATIC1111 takes BREAK for a word
            prompt = f"{prompt} BREAK {draw.choice(WORDS)} BREAK"
        found.append(prompt)
    return found


# -------------------------------------------------------------------------------- the tools' parsers


def source(repository: str, commit: str, path: str) -> str:
    command = ["git", "-C", repository, "show", f"{commit}:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def module(name: str, code: str = "", **values: Any) -> types.ModuleType:
    """Run code as a module of this name, in packages that have only what is given."""
    created = types.ModuleType(name)
    package, _, short = name.rpartition(".")
    created.__dict__.update(values, __package__=package, __file__=f"/{short}.py")
    sys.modules[name] = created
    if package:
        setattr(sys.modules[package], short, created)
    exec(compile(code, name, "exec"), created.__dict__)
    return created


class Automatic:
    """AUTOMATIC1111's schedule, attention parser, rows and emphasis."""

    def __init__(self, repository: str, tokenizer: Any, network: Any) -> None:
        options = types.SimpleNamespace(
            emphasis="Original",
            comma_padding_backtrack=20,
            use_old_emphasis_implementation=False,
            textual_inversion_add_hashes_to_infotext=False,
            CLIP_stop_at_last_layers=1,
        )
        none = types.SimpleNamespace(find_embedding_at_position=lambda *_: (None, None))
        hijack = types.SimpleNamespace(embedding_db=none, fixes=None, extra_generation_params={})
        module("modules")
        module("modules.shared", opts=options)
        module("modules.devices", device="cpu", torch_npu_set_device=lambda: None)
        module("modules.sd_hijack", model_hijack=hijack, StableDiffusionModelHijack=object)
        self.parser = module("modules.prompt_parser", source(repository, A1111, "modules/prompt_parser.py"))
        module("modules.sd_emphasis", source(repository, A1111, "modules/sd_emphasis.py"))
        clip = module("modules.sd_hijack_clip", source(repository, A1111, "modules/sd_hijack_clip.py"))
        wrapped = types.SimpleNamespace(tokenizer=tokenizer, transformer=network)
        self.embedder = clip.FrozenCLIPEmbedderWithCustomWords(wrapped, hijack)

    def schedule(self, prompt: str) -> list[list[Any]]:
        return self.parser.get_learned_conditioning_prompt_schedules([prompt], STEPS)[0]

    def rows(self, part: str) -> list[tuple[list[int], list[float]]]:
        chunks, _ = self.embedder.tokenize_line(part)
        return [(chunk.tokens, chunk.multipliers) for chunk in chunks]


class Comfy:
    """ComfyUI's tokenizer and encoder of weights."""

    def __init__(self, repository: str, tokenizer: Any, network: Any) -> None:
        for name in ("comfy", "comfy.ops", "comfy.clip_model"):
            module(name, CLIPTextModel=object)
        module("comfy.model_management", intermediate_device=lambda: "cpu")
        code = source(repository, COMFY, "comfy/sd1_clip.py")
        self.clip = module("comfy.sd1_clip", code)
        factory = types.SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
        self.tokenizer = self.clip.SDTokenizer("", tokenizer_class=factory)
        self.encoder = self.clip.ClipTokenWeightEncoder()
        end = tokenizer.eos_token_id
        self.encoder.special_tokens = {"start": tokenizer.bos_token_id, "end": end, "pad": end}
        self.encoder.encode = lambda ids: (network(torch.tensor(ids)).last_hidden_state, None)

    def rows(self, prompt: str) -> list[tuple[list[int], list[float]]]:
        batches = self.tokenizer.tokenize_with_weights(prompt)
        return [([token for token, _ in row], [weight for _, weight in row]) for row in batches]


def short(rows: list[tuple[list[int], list[float]]], end: int) -> list[dict[str, Any]]:
    """The tokens between the start and the padding, and weights as [weight, count]."""
    found = []
    for ids, weights in rows:
        kept = len(ids)
        while ids[kept - 1] == end and weights[kept - 1] == 1.0:
            kept -= 1
        runs = [[weight, len(list(run))] for weight, run in groupby(weights[1:kept])]
        found.append({"ids": ids[1:kept], "weights": runs})
    return found


# --------------------------------------------------------------------------------- the conditioning


def network_of(tokens: int, end: int) -> tuple[Any, Any]:
    """transformers' text encoder and Kinema's with the same random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from kinema.conditioning.clip_text import ClipText, ClipTextSize

    torch.manual_seed(0)
    size = ClipTextSize(width=32, layers=2, heads=2, mlp=64, vocabulary=tokens)
    own = ClipText(size).eval().requires_grad_(False)
    for parameter in own.parameters():  # random norms, so that the states have a mean
        parameter.add_(torch.randn_like(parameter) * 0.1)
    own.text_model.final_layer_norm.bias.add_(1)
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=end - 1,
        eos_token_id=end,
    )
    theirs = CLIPTextModel(config).eval().requires_grad_(False)
    names = {name.removeprefix("text_model."): tensor for name, tensor in own.state_dict().items()}
    theirs.load_state_dict(names if "embeddings.token_embedding.weight" in theirs.state_dict() else own.state_dict())
    return own, theirs


def differences(automatic: Automatic, comfy: Comfy, own: Any, folder: Path, all_prompts: list[str]) -> dict[str, float]:
    """The largest difference of states, relative to their largest value, over all prompts and steps."""
    from kinema.conditioning.clip_text import ClipTextSize, ClipTokenizer
    from kinema.conditioning.prompts import a1111
    from kinema.conditioning.prompts.encoding import Encoder, Reading, encode
    from kinema.conditioning.prompts.rows import Words, rows_of

    tokenizer, count = ClipTokenizer(folder), own.text_model.embeddings.token_embedding.num_embeddings
    size = ClipTextSize(width=32, layers=2, heads=2, mlp=64, vocabulary=count)
    words, encoders = Words(tokenizer, 75), [Encoder(own, size, None, {})]
    worst = {"a1111": 0.0, "comfy": 0.0}
    for prompt in all_prompts:
        texts = [part.text for part in a1111.parts(prompt, STEPS)]
        rows = [rows_of("a1111", each, words) for each in texts]
        found = encode(encoders, tokenizer, rows, "a1111", Reading(), [1] * len(texts))
        expected = automatic.embedder(texts)
        pairs = [("a1111", torch.cat([context for context, _ in found]), expected)]
        found = encode(encoders, tokenizer, [rows_of("comfy", prompt, words)], "comfy", Reading(), [1])
        weighted = comfy.tokenizer.tokenize_with_weights(prompt)
        pairs.append(("comfy", found[0][0], comfy.encoder.encode_token_weights(weighted)[0]))
        for name, states, expected in pairs:
            worst[name] = max(worst[name], float((states - expected).abs().max() / expected.abs().max()))
    return worst


def main(a1111: str, comfy: str, output: str = str(OUTPUT)) -> None:
    from transformers import CLIPTokenizer

    ids, merges = vocabulary()
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(ids))
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        end = tokenizer.eos_token_id
        own, network = network_of(len(ids), end)
        automatic, comfyui = Automatic(a1111, tokenizer, network), Comfy(comfy, tokenizer, network)
        recorded = []
        for prompt in prompts():
            schedule = automatic.schedule(prompt)
            texts = list(dict.fromkeys(part for _, part in schedule))
            recorded.append(
                {
                    "prompt": prompt,
                    "texts": texts,
                    "schedule": [[step, texts.index(part)] for step, part in schedule],
                    "a1111": [short(automatic.rows(part), end) for part in texts[:TEXTS]],
                    "comfy": short(comfyui.rows(prompt), end),
                }
            )
        data = {
            "a1111": A1111,
            "comfy": COMFY,
            "steps": STEPS,
            "vocabulary": ids,
            "merges": merges,
            "prompts": recorded,
        }
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
        found = differences(automatic, comfyui, own, Path(folder), prompts())
    sys.stdout.write(f"{len(recorded)} prompts; largest difference of conditioning: {found}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
