"""LoRAs as a run writes them, besides Kinema's own file: for PEFT, diffusers and Flux's trainers.

Written here with alpha / rank multiplied into the up matrices, since these files have no settings next to them.
"""

from __future__ import annotations

from torch import Tensor

from kinema.checkpoints import lora_formats
from kinema.checkpoints.lora_formats import Adapter, Lora
from kinema.checkpoints.peft import PEFT_PREFIX
from kinema.families.opensora.config import Config as Config2
from kinema.families.opensora.files import lora
from kinema.families.opensora.v1.config import Config as Config1

PREFIX = lora.PART


def files(config: Config1 | Config2, low: Lora) -> dict[str, dict[str, Tensor]]:
    """``lora-peft`` with Open-Sora's own names; of 2.0 ``lora-diffusers`` and ``lora-kohya`` with Flux's, too.

    Flux's layouts turn adjacent features, so rows of queries and keys are moved; diffusers splits layers, and the
    trainers' kohya layout fuses them.
    """
    plain = {name: Adapter(each.down, each.up * each.scale) for name, each in low.items()}
    own = {name.removeprefix(PREFIX): each for name, each in plain.items()}
    found = {"lora-peft": {f"{PEFT_PREFIX}{name}": x for name, x in lora_formats.diffusers(own).items()}}
    if isinstance(config, Config2):
        layouts = {layout.name: layout for layout in lora.layouts(config)}
        found["lora-diffusers"] = lora_formats.diffusers(layouts["diffusers"].moved(plain))
        found["lora-kohya"] = lora_formats.kohya(layouts["kohya"].moved(plain))
    return found
