"""T5 as Open-Sora's prompts are read by it, against transformers: from a file on disk to the states of one prompt.

The package reads a block's weights when it runs and drops them after it; transformers loads the whole network first.
Both compute in float32, as the package does on a CPU; the rows are named by the precision of the file. The width is the
published one, with a few of its 24 blocks.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.vs.pairs import Comparison, Goals, Width, Work, drawn, uninitialised
from kinema.checkpoints.stream import Stream
from kinema.conditioning import t5
from kinema.conditioning.streamed import streamed

LENGTH = 512


class T5Reading(Comparison):
    name = "t5"
    goals: Goals = {}
    full: Goals = {("t5", "fp32"): 1.0, ("t5", "bf16"): 1.0}
    parts = ("t5",)
    config: dict[str, Any] = {**t5.XXL, "num_layers": 2}

    def __init__(self, width: Width = "full") -> None:
        super().__init__(width)
        self.scratch = tempfile.TemporaryDirectory(prefix="t5-")

    @property
    def about(self) -> str:
        c = self.config
        return (
            f"T5 of width {c['d_model']}, {c['num_layers']} of XXL's 24 blocks, a prompt of {LENGTH} tokens: loading "
            "from a file in the page cache and one pass, in float32"
        )

    def t5(self, dtype: torch.dtype) -> dict[str, Work]:
        """Reading one prompt, from a file in this precision."""
        from transformers import T5EncoderModel

        folder = self.written(dtype)
        ids = torch.randint(self.config["vocab_size"], (1, LENGTH), generator=torch.Generator().manual_seed(1))
        found = t5.Found(t5.T5, folder, self.config, folder)

        def theirs() -> Tensor:
            return T5EncoderModel.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).last_hidden_state

        def ours() -> Tensor:
            model, stream = t5._empty(found), Stream(folder)
            names = t5._names_in_file(model, stream.header, found)
            device = torch.device("cpu")
            with streamed(model, model.encoder.block, lambda name: stream[names[name]], device, torch.float32):
                return model(input_ids=ids).last_hidden_state

        return {"T5 reads a prompt, by the file's precision": Work(theirs, ours, weights=(torch.nn.Module(),))}

    def written(self, dtype: torch.dtype) -> Path:
        """The folder of a random network's file."""
        from transformers import T5Config, T5EncoderModel

        folder = Path(self.scratch.name) / str(dtype).removeprefix("torch.")
        folder.mkdir()
        torch.manual_seed(0)
        with uninitialised():
            network = drawn(T5EncoderModel(T5Config(**self.config))).to(dtype)
        state = {name: weight for name, weight in network.state_dict().items() if name != "encoder.embed_tokens.weight"}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        named = {"architectures": ["T5EncoderModel"], "model_type": "t5", **self.config}
        (folder / "config.json").write_text(json.dumps(named))
        return folder
