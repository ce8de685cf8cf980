"""The settings that PEFT saves with a LoRA, as far as they change its weights: alphas, ranks, the kind of scale.

Files of diffusers have the settings in their metadata, with a component before each (``unet.lora_alpha``). PEFT itself
saves them in `PEFT_CONFIG`, next to the weights. Both name layers as the file of the weights does.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kinema.bounds import from_json, quoted
from kinema.checkpoints.files import MAX_NAME, header, metadata, weight_files
from kinema.checkpoints.lora_parts import Strength
from kinema.checkpoints.source import read_json
from kinema.schema import BadRequest

PEFT_NOTE = "lora_adapter_metadata"
"""Metadata key of PEFT's settings in diffusers files."""
PEFT_STEM, PEFT_CONFIG = "adapter_model", "adapter_config.json"
"""The weights and settings that PEFT saves in a folder."""
PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every layer, but not in its settings."""
RANKED = re.compile(r"\.lokr_w1(\.|$)")
"""In the names of full LoKr matrices, whose scale needs the rank of the settings: only these depend on it."""
_MOST_GAPS = 4
"""Maximum ``.*`` of a pattern; each one multiplies the time that a name takes."""


_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "milora", "lora_ga")
"""Initialisations of PEFT that change the weights which a LoRA is added to, so that the file alone is not enough."""
_VARIANTS = (
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
    "layer_replication", "target_parameters", "trainable_token_indices",
)  # fmt: skip
"""Settings of PEFT that, where set, change what the matrices of a LoRA mean."""


class PeftAlphas:
    """A default alpha and those of name patterns, for each component ("" in settings without components), and more.

    ``where`` is the LoRA that messages name, ``place`` where it has the settings.
    """

    def __init__(self, settings: Any, where: str, place: str) -> None:
        self.default: dict[str, float] = {}
        self.patterns: dict[str, dict[str, float]] = defaultdict(dict)
        self.ranks: dict[str, dict[str, float]] = defaultdict(dict)
        self.stabilised: set[str] = set()
        self.decomposed: set[str] = set()

        def number(value: Any, what: str = "alpha") -> float:
            if isinstance(value, bool) or not isinstance(value, int | float):  # JSON's are finite: see `from_json`
                raise BadRequest(f"{where} has the {what} {quoted(value)} in {place}; expected a number")
            if what == "rank" and value < 1:
                raise BadRequest(f"{where} has the rank {quoted(value)} in {place}; expected at least 1")
            return float(value)

        def patterns(value: Any, what: str = "alpha") -> dict[str, float]:
            found = {name: number(each, what) for name, each in (value or {}).items()}
            if strange := [name for name in found if not _pattern(name)]:
                raise BadRequest(
                    f"{where} has the pattern {quoted(strange[0])} in {place}; expected names of layers, or parts of "
                    f"them with .* between"
                )
            return found

        try:
            for key, value in settings.items():
                part, _, setting = key.rpartition(".")
                if setting == "lora_alpha" or (setting == "alpha" and value is not None):
                    self.default[part] = number(value)
                elif setting == "alpha_pattern":
                    self.patterns[part] = patterns(value)
                elif setting == "rank_pattern":
                    self.ranks[part] |= patterns(value, "rank")
                elif setting == "r" and value is not None:
                    self.ranks[part][""] = number(value, "rank")
                elif setting == "use_rslora" and value:
                    self.stabilised.add(part)
                elif setting == "use_dora" and value:
                    self.decomposed.add(part)
                elif setting in _VARIANTS and value:
                    raise BadRequest(
                        f"{where} has {setting} {quoted(value)} in {place}, a variant of LoRA that is not supported; "
                        "expected a plain LoRA"
                    )
                elif setting == "init_lora_weights" and str(value).startswith(_CHANGED_BASE):
                    raise BadRequest(
                        f"{where} was initialised by {quoted(value)} ({place}), which changes the model's own weights; "
                        "expected a LoRA that PEFT converted to a plain one (path_initial_model_for_weight_conversion)"
                    )
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
        config = settings_next_to(path)
        if config is None:
            return PeftAlphas.noted(metadata(path), path.name)
        return PeftAlphas(read_json(config), path.name, config.name)

    def of(self, stem: str) -> float | None:
        """The alpha of a layer, by its name in the file without ``.lora_A.weight``; None without a setting for it.

        PEFT's patterns are the ends of names, or whole names after "^"; the first one that fits counts.
        """
        name, part = self._named(stem)
        return _first(self.patterns.get(part, {}), name, self.default.get(part))

    def strength(self, stem: str) -> Strength:
        """All that a layer's scale is computed from, by its name in the file."""
        name, part = self._named(stem)
        ranks = self.ranks.get(part, {})
        rank = _first({pattern: rank for pattern, rank in ranks.items() if pattern}, name, ranks.get(""))
        return Strength(self.of(stem), None if rank is None else int(rank), part in self.stabilised)

    def is_dora(self, stem: str) -> bool:
        """Whether the settings of a layer's component state a DoRA."""
        return self._named(stem)[1] in self.decomposed

    def _named(self, stem: str) -> tuple[str, str]:
        """A layer's name without PEFT's prefix and its component, and the component whose settings count for it."""
        name = stem.replace(PEFT_PREFIX, "", 1)
        first = name.partition(".")[0]
        # Names without a component belong to the denoiser.
        parts = (first, "") if first.startswith("text_encoder") else (first, "", "unet", "transformer")
        stated = self.default.keys() | self.patterns.keys() | self.stabilised | self.decomposed
        part = next((each for each in parts if each in stated), "")
        return name.removeprefix(f"{part}."), part


@lru_cache(4096)
def _pattern(text: str) -> re.Pattern[str] | None:
    """The regular expression of a pattern; None for one that is not a name with ``.*`` and escaped dots.

    PEFT takes any regular expression, which a stranger's file could use to stall.
    """
    plain = re.fullmatch(r"\^?((?:[\w.-]|\\\.|\.\*)*)\$?", text)
    if plain is None or text.count(".*") > _MOST_GAPS or len(text) > MAX_NAME:
        return None
    return re.compile(("" if text.startswith("^") else r"(?:.*\.)?") + plain[1])


def _fits(pattern: str, name: str) -> bool:
    if pattern.replace(".", "").replace("_", "").isalnum():  # most of them, and there may be as many as layers
        return f".{name}".endswith(f".{pattern}")
    found = _pattern(pattern)
    return found is not None and found.fullmatch(name) is not None


def _first(patterns: Mapping[str, float], name: str, default: float | None) -> float | None:
    """The value of the first pattern that fits a name."""
    return next((value for pattern, value in patterns.items() if _fits(pattern, name)), default)


def saved_alphas(path: Path) -> str:
    """The alphas in the settings that PEFT saved next to a LoRA, as text; "" for a LoRA that is complete without."""
    if settings_next_to(path) is None:
        return ""
    alphas = PeftAlphas.read(path)
    # The order of patterns counts, that of all else does not.
    patterns = {part: list(each.items()) for part, each in alphas.patterns.items()}
    stated: dict[str, Any] = {"lora_alpha": alphas.default, "alpha_pattern": patterns}
    if alphas.stabilised:
        stated["use_rslora"] = sorted(alphas.stabilised)
    if any(RANKED.search(name) for name in header(path)):
        stated["r"] = {part: list(each.items()) for part, each in alphas.ranks.items()}
    return json.dumps(stated, sort_keys=True)


def settings_next_to(path: Path) -> Path | None:
    """The settings that PEFT saved next to a LoRA; None for other LoRAs, and for a file that has them itself.

    They belong to the file that their folder is read as: `PEFT_STEM` or the only weight file.
    """
    config = path / PEFT_CONFIG if path.is_dir() else path.with_name(PEFT_CONFIG)
    # A link to nothing is there: reading refuses it, where ignoring it would change the alphas.
    if not os.path.lexists(config) or not (path.is_dir() or _is_of_folder(path)):
        return None
    return None if PEFT_NOTE in metadata(path) else config


def foreign_settings_note(path: Path, names: Iterable[str]) -> str:
    """Say that settings next to a PEFT file are those of another file, "" for other files."""
    named = all(".lora_A." in name or ".lora_B." in name for name in names)
    if path.is_dir() or not named or not path.with_name(PEFT_CONFIG).is_file() or PEFT_NOTE in metadata(path):
        return ""
    if settings_next_to(path) is not None:
        return ""
    return (
        f"{path.name} has no alphas, and the {PEFT_CONFIG} next to it is not used, because its folder has several "
        f"weight files: name this one {PEFT_STEM}{path.suffix} if it belongs to it"
    )


def _is_of_folder(path: Path) -> bool:
    if path.stem == PEFT_STEM:
        return True
    try:
        return [file.name for file in weight_files(path.parent)] == [path.name]
    except BadRequest:
        return False
