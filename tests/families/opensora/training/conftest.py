"""Tiny networks with random weights, batches, and a network of fixed output that keeps what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from kinema.families.opensora.family import FAMILY
from kinema.system import Batch

HEIGHT, WIDTH = 16, 24


@pytest.fixture
def network() -> Callable[[str], tuple[Any, nn.Module]]:
    """The config and network of a preset. Untrained heads are zero, which would make many claims trivially true."""

    def build(preset: str) -> tuple[Any, nn.Module]:
        torch.manual_seed(0)
        config = FAMILY.presets[preset]
        model = FAMILY.build(config).train()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        return config, model

    return build


@pytest.fixture
def batch() -> Callable[..., Batch]:
    def make(config: Any, clips: int = 3, caption: str = "a red ball rolls right", **fields: Any) -> Batch:
        frames = config.frames
        video = torch.rand(clips, 3, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) * 2 - 1
        return Batch(video, [caption] * clips, torch.zeros(clips, 1, frames, HEIGHT, WIDTH), **fields)

    return make


class Fixed(nn.Module):
    """In the place of an STDiT: the same output at every call, plus what a test adds to it."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.x_embedder, self.y_embedder = transformer.x_embedder, transformer.y_embedder
        self.seen: dict[str, Any] = {}
        self.added: Tensor | float = 0.0

    def forward(self, z: Tensor, time: Tensor, states: Tensor, tokens: Tensor, **inputs: Any) -> Tensor:
        self.seen = {"z": z, "time": time, "states": states, "tokens": tokens, **inputs}
        output = torch.randn(z.shape[0], 2 * z.shape[1], *z.shape[2:], generator=torch.Generator().manual_seed(3))
        return 0.7 * output + self.added


@pytest.fixture
def fixed() -> type[Fixed]:
    return Fixed


@pytest.fixture
def encoders(tmp_path: Path) -> Path:
    """A folder with small T5 and CLIP encoders and their tokenizers, as the hub has them, for the tiny transformers."""
    root, words = tmp_path / "model", "a red blue green ball star rolls right left and".split()
    torch.manual_seed(0)
    t5 = T5Config(
        vocab_size=16, d_model=32, d_kv=5, d_ff=40, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=16, hidden_size=32, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1
    )
    for model, folder, begin in (
        (T5EncoderModel(t5), root / "google" / "t5-v1_1-xxl", ""),
        (CLIPTextModel(clip), root / "openai" / "clip-vit-large-patch14", "<s>"),
    ):
        model.save_pretrained(folder)
        names = ["<pad>", "</s>", "<unk>", *([begin] if begin else []), *words]
        if begin:
            kind = models.BPE({word: i for i, word in enumerate(names)}, [], unk_token="<unk>", ignore_merges=True)
        else:
            kind = models.Unigram([(word, -1.0) for word in names], unk_id=2)
        made = Tokenizer(kind)
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        marks = [("</s>", 1), *([(begin, 3)] if begin else [])]
        made.post_processor = processors.TemplateProcessing(single=f"{begin} $A </s>".strip(), special_tokens=marks)
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=77, **special).save_pretrained(folder)
    return root
