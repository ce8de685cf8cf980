"""Prompts as Open-Sora 2.0 and Flux read them: states of T5-XXL, and the pooled embedding of CLIP-L, by transformers.

T5's padding is not masked: the transformers were trained with it. The encoders run once, before anything else, block by
block (`streamed`), and what they return is kept on disk (`remembered`), so a prompt that was read before needs neither.

Letters: B prompts, M tokens, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema import bounds
from kinema.checkpoints import files, hub
from kinema.checkpoints.source import read_json
from kinema.checkpoints.stream import Stream
from kinema.conditioning import remembered
from kinema.conditioning.streamed import streamed
from kinema.events import OnEvent, Phase
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest

CLIP_LENGTH = 77
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json")
"""Files of which a tokenizer has at least one."""


@dataclass(frozen=True)
class Encoder:
    """One of the two encoders: its name on the hub, and folders where people keep it next to a model's file."""

    title: str
    slot: str
    hub: str
    folders: tuple[str, ...]
    tokenizers: tuple[str, ...]


T5 = Encoder(
    "T5-XXL",
    "t5",
    "google/t5-v1_1-xxl",
    ("google/t5-v1_1-xxl", "t5-v1_1-xxl", "t5", "text_encoder_2"),
    ("tokenizer_2",),
)
CLIP = Encoder(
    "CLIP-L",
    "clip",
    "openai/clip-vit-large-patch14",
    ("openai/clip-vit-large-patch14", "clip-vit-large-patch14", "clip", "text_encoder"),
    ("tokenizer",),
)
XXL: Mapping[str, Any] = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "tie_word_embeddings": False, "is_encoder_decoder": False, "use_cache": False,
}  # fmt: skip
"""The config of T5 1.1 XXL, for a single file of its weights."""
SETTINGS: Mapping[str, frozenset[str]] = {
    "t5": frozenset({*XXL, "layer_norm_epsilon"}),
    "clip": frozenset({
        "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
    }),
}  # fmt: skip
"""The keys that are read from an encoder's config.json: sizes and activations.

Others could make transformers download code, as ``attn_implementation`` does.
"""


@dataclass(frozen=True)
class Place:
    """Where encoders are searched (as named, next to ``weights``, in the hub's cache) and where they run."""

    weights: Path | None
    device: torch.device
    named: Mapping[str, Path] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """float32 on a CPU; bfloat16 elsewhere, since T5-XXL leaves float16's range."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16


@dataclass(frozen=True)
class Found:
    """An encoder's weights and config, and the folder of its tokenizer."""

    encoder: Encoder
    weights: Path
    config: Mapping[str, Any]
    tokenizer: Path


def encode(
    prompts: Sequence[str], length: int, widths: tuple[int, int], place: Place, on_event: OnEvent
) -> tuple[Tensor, Tensor]:
    """``(states B×length×F, pooled B×F)`` of prompts, on the CPU; ``widths`` are the features that a model expects.

    Raises BadRequest for an encoder or tokenizer that is not on this machine, saying where each was looked for, and for
    encoders of other widths.
    """
    if place.device.type == "meta":  # rehearsed: shapes are all there is, and the memory that reading takes for a while
        torch.empty(streamed_bytes(len(prompts), length), dtype=torch.uint8, device="meta")
        return torch.empty(len(prompts), length, widths[0]), torch.empty(len(prompts), widths[1])
    both = [(find(T5, place), length), (find(CLIP, place), CLIP_LENGTH)]
    found = [_encoded(encoder, prompts, tokens, place, on_event) for encoder, tokens in both]
    for (encoder, _), out, width in zip(both, found, widths, strict=True):
        if out.shape[-1] != width:
            raise BadRequest(
                f"{encoder.weights} is a {encoder.encoder.title} with {out.shape[-1]} features; the model needs {width}"
            )
    return found[0], found[1]


def streamed_bytes(prompts: int, length: int) -> int:
    """The peak of T5-XXL in float32, block by block: its embeddings, a block, and what the block computes.

    That is three maps of attention and the gate and hidden values of the feed-forward layer. CLIP-L needs less.
    """
    width, inner, heads, vocabulary = (XXL[name] for name in ("d_model", "d_ff", "num_heads", "vocab_size"))
    weights = vocabulary * width + 4 * width**2 + 3 * width * inner
    return 4 * (weights + prompts * length * (3 * heads * length + 2 * inner + 4 * width))


def _encoded(found: Found, prompts: Sequence[str], length: int, place: Place, on_event: OnEvent) -> Tensor:
    """One encoder's output for each prompt: from disk where it was computed before."""
    marks = {
        "encoder": found.encoder.title,
        "files": remembered.fingerprint(files.weight_files(found.weights)),
        "config": dict(found.config),
        "tokenizer": remembered.fingerprint(sorted(p for p in found.tokenizer.glob("*") if p.is_file())),
        "length": length,
        "dtype": str(place.dtype),
        "device": place.device.type,
    }
    keys = {prompt: remembered.key({**marks, "prompt": prompt}) for prompt in prompts}
    kept = {prompt: tensors["out"] for prompt, key in keys.items() if (tensors := remembered.get(key)) is not None}
    if missing := [prompt for prompt in keys if prompt not in kept]:
        on_event(Phase("condition", f"{found.encoder.title} reads the prompt"))
        for prompt, out in zip(missing, _run(found, missing, length, place), strict=True):
            kept[prompt] = out
            remembered.put(keys[prompt], {"out": out})
    return torch.stack([kept[prompt] for prompt in prompts])


@torch.no_grad()
def _run(found: Found, prompts: Sequence[str], length: int, place: Place) -> Tensor:
    try:
        from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
    except ImportError as error:
        raise BadRequest(
            f"prompts are read by {found.encoder.title}, which needs the transformers package: "
            f"pip install 'kinema[text]' ({error})"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.tokenizer, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library can raise anything for a damaged file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadRequest(f"the tokenizer in {found.tokenizer} cannot be read: {bounds.printable(first, 160)}") from None
    ids = tokenizer(list(prompts), truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    stream, ids = Stream(found.weights), ids["input_ids"].to(place.device)
    if found.encoder is T5:
        with on_meta():
            model = T5EncoderModel(T5Config(**found.config)).eval()
        blocks = list(model.encoder.block)
        with streamed(model, blocks, lambda name: _weight(stream, name, found), place.device, place.dtype):
            return model(input_ids=ids, attention_mask=None).last_hidden_state.float().cpu()
    with on_meta():  # refuses a config that cannot be built before it takes memory
        CLIPTextModel(CLIPTextConfig(**found.config))
    clip = CLIPTextModel(CLIPTextConfig(**found.config)).eval()  # small, and its buffers are in no file
    clip.load_state_dict({name: _weight(stream, name, found) for name, _ in clip.named_parameters()}, strict=False)
    return clip.to(place.device, place.dtype)(input_ids=ids, attention_mask=None).pooler_output.float().cpu()


def _weight(stream: Stream, name: str, found: Found) -> Tensor:
    """A weight under the names that files of the encoder have."""
    tied = {"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"}
    for each in (name, tied.get(name, name), f"text_model.{name}", name.removeprefix("text_model.")):
        if each in stream:
            return stream[each]
    raise BadRequest(f"{found.weights} lacks {name}, so it is not {found.encoder.title}")


# ---------------------------------------------------------------------------------------- finding


def find(encoder: Encoder, place: Place) -> Found:
    """Where an encoder is on this machine. Raises BadRequest that names what is missing and how to get it."""
    weights = place.named.get(encoder.slot) or _beside(encoder, place) or _cached(encoder.hub, WEIGHTS)
    if weights is None:
        nearby = f"next to the model in {_root(place.weights)} or " if place.weights else ""
        raise BadRequest(
            f"{encoder.title}, which encodes the prompt, is not {nearby}in the hub's cache; download it with "
            f"`hf download {encoder.hub}`, or give its folder or file with --add {encoder.slot}=PATH"
        )
    config = _config(encoder, weights)
    return Found(encoder, weights, config, _tokenizer(encoder, weights, place))


def _config(encoder: Encoder, weights: Path) -> Mapping[str, Any]:
    """The config of the weights: of their folder, else XXL's or that of CLIP-L, whose defaults transformers has."""
    folder = weights if weights.is_dir() else weights.parent
    file = folder / "config.json"
    if weights.is_dir() and file.is_file():
        config = read_json(file)
        config = config.get("text_config") or config if encoder is CLIP else config
        return {name: value for name, value in config.items() if name in SETTINGS[encoder.slot]}
    return XXL if encoder is T5 else {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                                      "projection_dim": 768, "eos_token_id": 2}  # fmt: skip


def _tokenizer(encoder: Encoder, weights: Path, place: Place) -> Path:
    folder = weights if weights.is_dir() else weights.parent
    places = [folder, *(above / name for above in (folder.parent, folder) for name in encoder.tokenizers)]
    if place.weights is not None:
        places += [_root(place.weights) / name for name in (*encoder.folders, *encoder.tokenizers)]
    for each in places:
        if any((each / name).is_file() for name in VOCABULARIES):
            return each
    cached = _cached(encoder.hub, ("*.json", "*.model", "*.txt"))
    if cached is not None and any((cached / name).is_file() for name in VOCABULARIES):
        return cached
    raise BadRequest(
        f"{encoder.title} has no tokenizer next to {weights} or in the hub's cache; put its files there, or run "
        f"`hf download {encoder.hub} --include 'tokenizer*' 'spiece.model' 'vocab.json' 'merges.txt'`"
    )


def _root(weights: Path) -> Path:
    return weights if weights.is_dir() else weights.parent


def _beside(encoder: Encoder, place: Place) -> Path | None:
    if place.weights is None:
        return None
    for name in encoder.folders:
        folder = _root(place.weights) / name
        if folder.is_dir() and any(next(folder.glob(kind), None) for kind in WEIGHTS):
            return folder
    return None


def _cached(name: str, patterns: Sequence[str]) -> Path | None:
    """A folder of the hub's cache. Never downloaded: T5-XXL is 19 GB, which nobody should get unasked."""
    try:
        return hub.fetch(name, offline=True, patterns=patterns)
    except BadRequest:
        return None
