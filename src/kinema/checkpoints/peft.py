"""The settings that PEFT saves with a LoRA, as far as they change its weights: the alphas.

Files of diffusers have the settings in their metadata, with a component before each (``unet.lora_alpha``). PEFT itself
saves them in `PEFT_CONFIG`, next to the weights. Both name layers as the file of the weights does.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinema.bounds import from_json, quoted
from kinema.checkpoints.files import metadata
from kinema.checkpoints.source import read_json
from kinema.schema import BadRequest

PEFT_NOTE = "lora_adapter_metadata"
"""Metadata key of PEFT's settings in diffusers files."""
PEFT_STEM, PEFT_CONFIG = "adapter_model", "adapter_config.json"
"""The weights and settings that PEFT saves in a folder."""
PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every layer, but not in its settings."""


class PeftAlphas:
    """A default alpha and those of name patterns, for each component ("" in settings without components).

    ``where`` is the LoRA that messages name, ``place`` where it has the settings.
    """

    def __init__(self, settings: Any, where: str, place: str) -> None:
        self.default: dict[str, float] = {}
        self.patterns: dict[str, dict[str, float]] = defaultdict(dict)

        def number(value: Any) -> float:
            if isinstance(value, bool) or not isinstance(value, int | float):  # JSON's are finite: see `from_json`
                raise BadRequest(f"{where} has the alpha {quoted(value)} in {place}; expected a number")
            return float(value)

        try:
            for key, value in settings.items():
                part, _, setting = key.rpartition(".")
                if setting == "lora_alpha":
                    self.default[part] = number(value)
                elif setting == "alpha_pattern":
                    self.patterns[part] = {name: number(alpha) for name, alpha in (value or {}).items()}
                elif setting in ("use_rslora", "use_dora") and value:
                    raise BadRequest(f"{where} is a rank-stabilised or weight-decomposed LoRA; expected a plain LoRA")
        except AttributeError as error:
            raise BadRequest(f"{where} has damaged PEFT settings in {place}; expected names and values") from error

    @staticmethod
    def noted(metadata: Mapping[str, str], where: str) -> PeftAlphas:
        """The alphas in a file's metadata."""
        return PeftAlphas(
            from_json(metadata.get(PEFT_NOTE, "{}"), f"the note of PEFT's settings in {where}"), where, "its metadata"
        )

    @staticmethod
    def read(path: Path) -> PeftAlphas:
        """The alphas of a LoRA file, or of a folder that PEFT saved."""
        config = _config(path)
        if config is None:
            return PeftAlphas.noted(metadata(path), path.name)
        return PeftAlphas(read_json(config), path.name, config.name)

    def of(self, stem: str) -> float | None:
        """The alpha of a layer, by its name in the file without ``.lora_A.weight``; None without a setting for it.

        PEFT's patterns are the ends of names, or whole names after "^". A whole name comes before all ends: it is the
        more specific.
        """
        name = stem.removeprefix(PEFT_PREFIX)
        first = name.partition(".")[0]
        # Names without a component belong to the denoiser.
        parts = (first, "") if first.startswith("text_encoder") else (first, "", "unet", "transformer")
        part = next((each for each in parts if each in self.default or each in self.patterns), "")
        name = name.removeprefix(f"{part}.")
        patterns = self.patterns.get(part, {})
        found = [alpha for pattern, alpha in patterns.items() if pattern in (name, f"^{name}")]
        found += [alpha for pattern, alpha in patterns.items() if name.endswith(f".{pattern}")]
        return found[0] if found else self.default.get(part)


def saved_alphas(path: Path) -> str:
    """The alphas in the settings that PEFT saved next to a LoRA, as text; "" for a LoRA that is complete without."""
    if _config(path) is None:
        return ""
    alphas = PeftAlphas.read(path)
    # The order of patterns counts, that of all else does not.
    patterns = {part: list(each.items()) for part, each in alphas.patterns.items()}
    return json.dumps({"lora_alpha": alphas.default, "alpha_pattern": patterns}, sort_keys=True)


def _config(path: Path) -> Path | None:
    """The settings that PEFT saved next to a LoRA; None for other LoRAs, and for a file that has them itself."""
    config = path / PEFT_CONFIG if path.is_dir() else path.with_name(PEFT_CONFIG)
    by_peft = path.is_dir() or path.stem == PEFT_STEM
    # A link to nothing is there: reading refuses it, where ignoring it would change the alphas.
    return config if by_peft and os.path.lexists(config) and PEFT_NOTE not in metadata(path) else None
