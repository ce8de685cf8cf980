"""Prompts as Open-Sora 2.0 and Flux read them: states of T5-XXL, and the pooled embedding of CLIP-L, by transformers.

T5's padding is not masked: the transformers were trained with it. Those of Open-Sora 1.x were not, see `encode_masked`.
The encoders run once, before anything else, block by block (`streamed`), and what they return is kept on disk
(`remembered`). A prompt that was read before does not load them again; their files must still be there, since their
names, sizes and times are part of an embedding's key.

Letters: B prompts, M tokens, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema import bounds
from kinema.checkpoints import files, hub
from kinema.checkpoints.files import Header
from kinema.checkpoints.source import read_json
from kinema.checkpoints.stream import Stream
from kinema.conditioning import remembered
from kinema.conditioning.streamed import streamed
from kinema.events import Note, OnEvent, Phase
from kinema.nn.linear import adopt
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.values import quoted

CLIP_LENGTH = 77
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
FLOATS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
"""The dtypes of weights that are read as they are; files whose 8-bit floats need scales have tensors for these."""
TIED = {"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"}
"""The two names of T5's token embeddings, of which a file has one or both."""


@dataclass(frozen=True)
class Encoder:
    """One of the two encoders: its name on the hub, and folders where people keep it next to a model's file.

    Its tokenizer is ``tokenizer.json`` of the type ``model``, or the files of ``vocabulary``. Tensors whose names start
    with one of ``others`` belong to other parts of the published network, which are not run.
    """

    title: str
    slot: str
    hub: str
    folders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    model: str
    vocabulary: tuple[str, ...]
    others: tuple[str, ...]


T5 = Encoder(
    "T5-XXL",
    "t5",
    "google/t5-v1_1-xxl",
    ("google/t5-v1_1-xxl", "t5-v1_1-xxl", "t5", "text_encoder_2"),
    ("tokenizer_2",),
    "Unigram",
    ("spiece.model",),
    ("decoder.", "lm_head."),
)
CLIP = Encoder(
    "CLIP-L",
    "clip",
    "openai/clip-vit-large-patch14",
    ("openai/clip-vit-large-patch14", "clip-vit-large-patch14", "clip", "text_encoder"),
    ("tokenizer",),
    "BPE",
    ("vocab.json", "merges.txt"),
    ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "text_model.embeddings.position_ids",
     "embeddings.position_ids"),
)  # fmt: skip
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

    A prompt of which T5 reads only the beginning is noted. CLIP reads at most 77 tokens, which is not: T5 has the rest.

    Raises BadRequest for an encoder or tokenizer that is not on this machine, saying where each was looked for, for
    weights that do not match their config, and for encoders of other widths.
    """
    if place.device.type == "meta":  # rehearsed: shapes are all there is, and the memory that reading takes for a while
        torch.empty(streamed_bytes(len(prompts), length), dtype=torch.uint8, device="meta")
        return torch.empty(len(prompts), length, widths[0]), torch.empty(len(prompts), widths[1])
    remembered.most()  # refuses a bad limit before the encoders run
    found = find(T5, place), find(CLIP, place)
    states, _ = _encoded(found[0], prompts, (length, widths[0]), place, on_event)
    return states, _encoded(found[1], prompts, (widths[1],), place, on_event)[0]


def encode_masked(
    prompts: Sequence[str], length: int, width: int, place: Place, on_event: OnEvent
) -> tuple[Tensor, Tensor]:
    """``(states B×length×width, mask B×length)`` of T5 alone, whose own attention leaves out padding, on the CPU.

    The mask is true at tokens. Open-Sora 1.0 to 1.3 read prompts so. Raises as `encode` does.
    """
    if place.device.type == "meta":
        torch.empty(streamed_bytes(len(prompts), length), dtype=torch.uint8, device="meta")
        return torch.empty(len(prompts), length, width), torch.ones(len(prompts), length, dtype=torch.bool)
    remembered.most()
    states, counts = _encoded(find(T5, place), prompts, (length, width), place, on_event, masked=True)
    return states, _mask(counts, length)


def _mask(counts: Sequence[int], length: int) -> Tensor:
    """B×length, true at each prompt's tokens."""
    return torch.arange(length) < torch.tensor(counts)[:, None]


def streamed_bytes(prompts: int, length: int) -> int:
    """The peak of T5-XXL in float32, block by block: its embeddings, a block, and what the block computes.

    That is three maps of attention and the gate and hidden values of the feed-forward layer. CLIP-L needs less.
    """
    width, inner, heads, vocabulary = (XXL[name] for name in ("d_model", "d_ff", "num_heads", "vocab_size"))
    weights = vocabulary * width + 4 * width**2 + 3 * width * inner
    return 4 * (weights + prompts * length * (3 * heads * length + 2 * inner + 4 * width))


def _encoded(  # noqa: PLR0917
    found: Found,
    prompts: Sequence[str],
    shape: tuple[int, ...],
    place: Place,
    on_event: OnEvent,
    *,
    masked: bool = False,
) -> tuple[Tensor, list[int]]:
    """One encoder's output for each prompt, of this shape, and its tokens: from disk where it was computed before."""
    length = shape[0] if found.encoder is T5 else CLIP_LENGTH
    marks = {
        "encoder": found.encoder.title,
        "files": remembered.fingerprint(files.weight_files(found.weights)),
        "config": dict(found.config),
        "tokenizer": remembered.fingerprint(sorted(p for p in found.tokenizer.glob("*") if p.is_file())),
        "length": length,
        "dtype": str(place.dtype),
        "device": place.device.type,
        **({"masked": True} if masked else {}),
    }
    keys = {prompt: remembered.key({**marks, "prompt": prompt}) for prompt in prompts}
    header: Header = {"out": (shape, torch.float32), "tokens": ((1,), torch.int64)}
    kept = {prompt: entry for prompt, key in keys.items() if (entry := remembered.get(key, header)) is not None}
    if missing := [prompt for prompt in keys if prompt not in kept]:
        on_event(Phase("condition", f"{found.encoder.title} reads the prompt"))
        outs, counts = _run(found, missing, length, shape[-1], place, masked=masked)
        for prompt, out, tokens in zip(missing, outs, counts, strict=True):
            kept[prompt] = {"out": out, "tokens": torch.tensor([tokens])}
            remembered.put(keys[prompt], kept[prompt])
    for prompt, entry in kept.items():
        if found.encoder is T5 and (tokens := int(entry["tokens"])) > length:
            on_event(Note(f"{T5.title} reads the first {length} of {tokens} tokens of the prompt {quoted(prompt)}"))
    states = torch.stack([kept[prompt]["out"] for prompt in prompts])
    return states, [int(kept[prompt]["tokens"]) for prompt in prompts]


@torch.no_grad()
def _run(  # noqa: PLR0917
    found: Found, prompts: Sequence[str], length: int, width: int, place: Place, *, masked: bool = False
) -> tuple[Tensor, list[int]]:
    """What the encoder returns, with ``width`` features, and the number of tokens of each prompt before it is cut.

    ``masked``: T5 does not attend to padding.
    """
    model = _empty(found)
    if (features := model.config.hidden_size) != width:
        raise BadRequest(
            f"{found.weights} is a {found.encoder.title} with {features} features; the model needs {width}"
        )
    stream = Stream(found.weights)
    names = _names_in_file(model, stream.header, found)
    ids, counts = _tokens(found, prompts, length, model.get_input_embeddings().num_embeddings)
    ids = ids.to(place.device)
    if found.encoder is T5:
        blocks = list(model.encoder.block)
        with streamed(model, blocks, lambda name: stream[names[name]], place.device, place.dtype):
            seen = _mask(counts, length).to(place.device) if masked else None
            return model(input_ids=ids, attention_mask=seen).last_hidden_state.float().cpu(), counts
    clip = type(model)(model.config).eval()  # small, as its file is, and its buffers are in no file
    clip.load_state_dict({name: stream[each] for name, each in names.items()}, strict=False)
    return clip.to(place.device, place.dtype)(input_ids=ids, attention_mask=None).pooler_output.float().cpu(), counts


def _empty(found: Found) -> Any:
    """The network on the meta device. Raises BadRequest for a config of which none can be built."""
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
    except ImportError as error:
        raise BadRequest(
            f"prompts are read by {found.encoder.title}, which needs the transformers package: "
            f"pip install 'kinema[text]' ({error})"
        ) from None
    kind, build = (T5Config, T5EncoderModel) if found.encoder is T5 else (CLIPTextConfig, CLIPTextModel)
    try:
        config = kind(**found.config)
    except Exception as error:  # the library's own errors have no common type
        raise BadRequest(
            f"the config of {found.weights} is not a config of {found.encoder.title}: {_said(error)}"
        ) from None
    with on_meta():
        model = build(config).eval()
    adopt(model)
    if found.encoder is CLIP and config.max_position_embeddings < CLIP_LENGTH:
        raise BadRequest(
            f"{found.weights} reads {config.max_position_embeddings} tokens; expected a CLIP-L that reads {CLIP_LENGTH}"
        )
    return model


def _names_in_file(model: nn.Module, header: Header, found: Found) -> dict[str, str]:
    """The file's name of each weight.

    Raises BadRequest for a file whose weights are not exactly those of the network, or are quantised.
    """
    names: dict[str, str] = {}
    missing, wrong, quantised = [], [], []
    for name, weight in model.named_parameters(remove_duplicate=False):
        candidates = (name, TIED.get(name, name), f"text_model.{name}", name.removeprefix("text_model."))
        each = next((candidate for candidate in candidates if candidate in header), None)
        if each is None:
            missing.append(name)
            continue
        names[name] = each
        shape, dtype = header[each]
        if shape != weight.shape:
            wrong.append(f"{each} is {_by(shape)}, expected {_by(weight.shape)}")
        if dtype not in FLOATS:
            quantised.append(f"{each} is {str(dtype).removeprefix('torch.')}, expected floats")
    used = {*names.values()}
    unexpected = [each for each in header if each not in used and not each.startswith(found.encoder.others)]
    lists = (("dtypes", quantised), ("missing", missing), ("unexpected", unexpected), ("shapes", wrong))
    if faults := [f"{fault}: {bounds.first_names(each)}" for fault, each in lists if each]:
        raise BadRequest(
            f"{found.weights} is not {found.encoder.title} as its config describes it; {'; '.join(faults)}"
        )
    return names


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _tokens(found: Found, prompts: Sequence[str], length: int, vocabulary: int) -> tuple[Tensor, list[int]]:
    """Token ids B×length, and the number of tokens of each prompt before it is cut."""
    from transformers import AutoTokenizer

    where, title = f"the tokenizer in {found.tokenizer}", found.encoder.title
    packages = [name for name in ("sentencepiece", "google.protobuf") if found.encoder is T5 and not _installed(name)]
    if packages and not (found.tokenizer / "tokenizer.json").is_file():  # transformers would ask for another package
        raise BadRequest(
            f"{where} is a spiece.model, which needs {' and '.join(packages)}: pip install sentencepiece protobuf, or "
            f"put a tokenizer.json of the type {T5.model} there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.tokenizer, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library can raise anything for a damaged file
        raise BadRequest(f"{where} cannot be read: {_said(error)}") from None
    kind = type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else found.encoder.model
    if kind != found.encoder.model:  # in a folder with the files of both
        raise BadRequest(f"{where} is of the type {kind}; expected {found.encoder.model}, as {title} has")
    if tokenizer.pad_token is None:
        raise BadRequest(f"{where} has no padding token; expected that of {title}")
    ids = tokenizer(list(prompts), truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    largest = max([*tokenizer.get_vocab().values(), int(ids["input_ids"].max())])
    if largest >= vocabulary:
        raise BadRequest(f"{where} has the token id {largest}; {found.weights} has embeddings of {vocabulary} tokens")
    counts = [len(each) for each in tokenizer(list(prompts), verbose=False)["input_ids"]]
    return ids["input_ids"], counts


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # nor is the package above it
        return False


def _said(error: Exception) -> str:
    """The first line of a library's message; of what follows, the last, which has the reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return bounds.printable(" ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip()))), 160)


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
        if not isinstance(config, Mapping):
            raise BadRequest(f"the text_config of {file} is {quoted(config)}; expected names and values in braces")
        kept = {name: each for name, each in config.items() if name in SETTINGS[encoder.slot] and each is not None}
        for name, each in kept.items():
            if isinstance(each, list | Mapping):
                raise BadRequest(f"{name} in {file} is {quoted(each)}; expected a single value")
        return kept
    return XXL if encoder is T5 else {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                                      "projection_dim": 768, "eos_token_id": 2}  # fmt: skip


def _tokenizer(encoder: Encoder, weights: Path, place: Place) -> Path:
    folder = weights if weights.is_dir() else weights.parent
    places = [*(above / name for above in (folder.parent, folder) for name in encoder.tokenizers), folder]
    if place.weights is not None:
        places += [_root(place.weights) / name for name in (*encoder.tokenizers, *encoder.folders)]
    for each in places:
        if _has_tokenizer(encoder, each):
            return each
    cached = _cached(encoder.hub, ("*.json", "*.model", "*.txt"))
    if cached is not None and _has_tokenizer(encoder, cached):
        return cached
    own = " and ".join(encoder.vocabulary)
    included = " ".join(f"--include {name}" for name in ("'tokenizer*'", "config.json", *encoder.vocabulary))
    raise BadRequest(
        f"{encoder.title} has no tokenizer next to {weights} or in the hub's cache; put {own}, or a tokenizer.json of "
        f"the type {encoder.model}, in a folder {encoder.tokenizers[0]} there, or run `hf download {encoder.hub} "
        f"{included}`"
    )


def _has_tokenizer(encoder: Encoder, folder: Path) -> bool:
    """Whether a folder has this encoder's tokenizer. A ``tokenizer.json`` decides: it is what transformers reads."""
    file = folder / "tokenizer.json"
    if file.is_file():
        return _model_type(file, file.stat().st_mtime_ns) == encoder.model
    return all((folder / name).is_file() for name in encoder.vocabulary)


@lru_cache(maxsize=16)  # megabytes of JSON, and training reads captions at every step
def _model_type(file: Path, _changed: int) -> str:
    """The type of a tokenizer's model. Old files do not name BPE, which alone has merges."""
    model = read_json(file).get("model")
    if not isinstance(model, Mapping):
        return ""
    return str(model.get("type") or ("BPE" if "merges" in model else ""))


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
