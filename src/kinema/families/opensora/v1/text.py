"""The prompts of Open-Sora 1.0 to 1.3: completed with scores, cleaned, and read by T5 with a mask.

Letters: B prompts, M tokens, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from kinema.conditioning import t5
from kinema.conditioning.pocket import PocketTokenizer, note_unknown_words
from kinema.events import OnEvent
from kinema.families.opensora.first_line import scores
from kinema.families.opensora.first_line.cleaning import cleaned
from kinema.families.opensora.v1.config import Config
from kinema.families.opensora.v1.model import OpenSora1, read_words
from kinema.schema import BadRequest, MissingFiles, Request
from kinema.system import OpenedModel

Text = tuple[Tensor, Tensor]
"""``(states 1×M×F, mask 1×M)``; the mask is true at tokens."""


def completed(config: Config, request: Request) -> str:
    """The prompt as T5 reads it: with the scores and the camera's motion that are asked for, and cleaned."""
    extra, prompt = request.extra, request.prompt.strip()
    aesthetic = extra.get("aesthetic_score", config.aesthetic)
    asked = (aesthetic, extra.get("motion_score"), extra.get("camera_motion"))
    if config.version in ("1.2", "1.3") and prompt:
        complete = scores.completed_v1_3 if config.version == "1.3" else scores.completed_v1_2
        prompt = complete(prompt, *asked)
    return cleaned(prompt)


def encode_prompt(system: OpenedModel, request: Request, on_event: OnEvent) -> Mapping[str, Text | None]:
    """The prompt, and the negative one; None without a negative prompt, for which the weights have states."""
    prompts = [completed(system.config, request)]
    if request.negative_prompt.strip():
        prompts.append(cleaned(request.negative_prompt))
    states_BMF, mask_BM = _encoded(system, prompts, on_event)
    found = [(states_BMF[i : i + 1], mask_BM[i : i + 1]) for i in range(len(prompts))]
    return {"positive": found[0], "negative": found[1] if len(found) > 1 else None}


def _encoded(system: OpenedModel, prompts: Sequence[str], on_event: OnEvent) -> Text:
    config: Config = system.config
    if config.words:
        note_unknown_words(PocketTokenizer(config.words), system.name, prompts, on_event)
        return read_words(cast(OpenSora1, system.model), config, prompts)
    return t5.encode_masked(prompts, config.stdit.tokens, config.stdit.text, _place(system), on_event)


def check_encoder(system: OpenedModel) -> None:
    """Raises MissingFiles if T5 or its tokenizer is not on this machine."""
    config: Config = system.config
    if config.words:
        return
    try:
        t5.find(t5.T5, _place(system))
    except BadRequest as error:
        raise MissingFiles(str(error)) from None


def _place(system: OpenedModel) -> t5.Place:
    return t5.Place(system.weights.path, system.device, system.weights.outside)
