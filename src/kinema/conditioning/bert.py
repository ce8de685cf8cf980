"""BERT embeddings of prompts, frozen, from the transformers library (VDM's text models use BERT-large).

Letters: B texts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.checkpoints import hub
from kinema.schema import BadRequest

LARGE = "google-bert/bert-large-uncased"
"""1024 wide, 24 layers. The paper says "BERT-large" and no more; uncased is our reading."""
FILES = ("*.json", "*.txt", "model.safetensors")
"""What of its repository is read."""


@dataclass(frozen=True, eq=False)
class BertText:
    """A tokenizer and its encoder; `load` makes one."""

    tokenizer: Any
    encoder: Any

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """``(text_BLD, keep_BL)``: the last layer for each token, cut or padded to ``length``, True on tokens."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        ids, keep = tokens["input_ids"].to(self.encoder.device), tokens["attention_mask"].to(self.encoder.device)
        return self.encoder(input_ids=ids, attention_mask=keep).last_hidden_state, keep.bool()


@lru_cache(maxsize=2)
def load(source: str = LARGE, *, device: str = "cpu", offline: bool = False) -> BertText:
    """BERT from a hub id or a local folder (safetensors only), kept for the next call.

    ``offline`` looks in the local cache alone, as does ``HF_HUB_OFFLINE=1``. Raises BadRequest where the
    weights, or the transformers library, are missing.
    """
    try:
        from transformers import AutoTokenizer, BertModel  # noqa: PLC0415 (heavy)
    except ImportError as error:
        raise BadRequest(
            f"this model reads prompts with BERT, which needs the transformers package ({error})"
        ) from None
    try:
        # From a folder, so that nobody but our own module of the hub can ask the network.
        folder = source if Path(source).is_dir() else hub.fetch(source, offline or None, FILES)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = BertModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadRequest(
            f"the BERT text encoder {source} is neither in the local cache nor could it be fetched; connect once, or "
            f"name a folder that holds it ({first})"
        ) from None
    return BertText(tokenizer, encoder.to(device).eval().requires_grad_(False))
