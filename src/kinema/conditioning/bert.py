"""Frozen BERT text encoder from the transformers library (VDM's text models use BERT-large).

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
"""Width 1024, 24 layers. The paper only states "BERT-large"; uncased is our choice."""
FILES = ("*.json", "*.txt", "model.safetensors")
"""Files to download from its repository."""


@dataclass(frozen=True, eq=False)
class BertText:
    """A tokenizer and its encoder, loaded by `load`."""

    tokenizer: Any
    encoder: Any

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Return ``(text_BLD, keep_BL)``: last hidden states, cut or padded to ``length``, and a token mask."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        ids, keep = tokens["input_ids"].to(self.encoder.device), tokens["attention_mask"].to(self.encoder.device)
        return self.encoder(input_ids=ids, attention_mask=keep).last_hidden_state, keep.bool()


@lru_cache(maxsize=2)
def load(source: str = LARGE, *, device: str = "cpu", offline: bool = False) -> BertText:
    """Load BERT from a hub id or a local folder (safetensors only); cached.

    ``offline`` only looks in the local cache, as does ``HF_HUB_OFFLINE=1``. Raises BadRequest if the weights or the
    transformers library are missing.
    """
    try:
        from transformers import AutoTokenizer, BertModel  # noqa: PLC0415 (heavy)
    except ImportError as error:
        raise BadRequest(
            f"this model encodes prompts with BERT, which needs transformers: pip install 'kinema[text]' ({error})"
        ) from None
    try:
        # Load from a folder, so that only `checkpoints.hub` can use the network.
        folder = source if Path(source).is_dir() else hub.fetch(source, offline or None, FILES)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        encoder = BertModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadRequest(
            f"the BERT text encoder {source} cannot be loaded or downloaded ({first}); go online once, or name a "
            "folder with its weights as .safetensors"
        ) from None
    return BertText(tokenizer, encoder.to(device).eval().requires_grad_(False))
