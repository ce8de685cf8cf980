"""The options of Open-Sora 2.0 in ``Request.extra``: their ranges, their help and their checks."""

from __future__ import annotations

from typing import Any

from kinema import registry
from kinema.families.opensora.config import Config
from kinema.families.opensora.prompts import has_motion_score
from kinema.schema import BadRequest, Request, plain_number
from kinema.values import quoted

RANGES: dict[str, tuple[float, float]] = {
    "image_guidance": (0, 100),
    "motion_score": (0, 100),
    "flow_shift": (0.01, 100),
    "decode_chunk": (2, 4096),
    "decode_overlap": (1, 4095),
    "decode_tile": (8, 4096),
}
"""Smallest and largest value of each number."""
SWITCHES = ("oscillate", "oscillate_image", "dynamic_image")
"""Guidance as published has all three on."""
OF_IMAGES = ("animate", "interpolate")
"""Tasks with given images, for which dynamic image guidance was published; `extend` is given the end of a clip."""
OF_GIVEN_FRAMES = (*OF_IMAGES, "extend")
"""Tasks in which the network takes given frames as conditioning."""
_IMAGE = ("image_guidance", "oscillate_image", "dynamic_image")


def helped(config: Config) -> dict[str, str]:
    """Return one line of help for each option."""
    shift = "from the size" if config.shift is None else plain_number(config.shift)
    score = config.motion_score
    about = (
        {}
        if score is None
        else {"motion_score": f"motion score, appended to the prompt; default {plain_number(score)}"}
    )
    on = "true" if config.oscillates else "false"
    about |= {
        "image_guidance": f"guidance scale of given frames; default {plain_number(config.image_guidance)}",
        "oscillate": f"guidance of the prompt is 1 at every odd step from the tenth on; default {on}",
        "oscillate_image": f"the same for guidance of given frames; default {on}",
        "dynamic_image": f"guidance of given images grows from 1 at the first frame; default {on}",
        "flow_shift": f"shift of the noise levels; default {shift}",
        "decode_chunk": "latent frames decoded at a time; default all, fewer if memory is short",
        "decode_overlap": "latent frames shared by neighbouring chunks, which fade; default a quarter",
        "decode_tile": "side of the squares decoded at a time, in latent cells; default the whole frame",
    }
    ranges = {name: f" ({plain_number(least)} to {plain_number(most)})" for name, (least, most) in RANGES.items()}
    return {name: text + ranges.get(name, " (true or false)") for name, text in about.items()}


def check(config: Config, request: Request) -> None:
    """Raise BadRequest for unknown options, values out of range, and options without effect in this request."""
    extra = request.extra
    for name, value in extra.items():
        if name in SWITCHES:
            if not isinstance(value, bool):
                raise BadRequest(f"{name} is {quoted(value)}; expected true or false")
        elif name in RANGES:
            _check_range(name, value)
        else:
            raise BadRequest(registry.unknown_name("option of opensora", name, [*RANGES, *SWITCHES]))
    _check_image_options(config, request)
    if "decode_overlap" in extra and "decode_chunk" not in extra:
        raise BadRequest("decode_overlap applies only with decode_chunk: give decode_chunk, or leave it out")
    chunk, overlap = extra.get("decode_chunk"), extra.get("decode_overlap", 0)
    if chunk is not None and overlap >= chunk:
        raise BadRequest(f"decode_overlap is {overlap}; expected less than the decode_chunk of {chunk}")
    if "motion_score" in extra:
        if config.motion_score is None:
            raise BadRequest("motion_score applies only to published models, whose prompts end with it: leave it out")
        _check_motion_score(request)


def _check_image_options(config: Config, request: Request) -> None:
    """Raise BadRequest for options of image guidance where the network takes no given frames, or no images."""
    given = [name for name in _IMAGE if name in request.extra]
    if not given:
        return
    native = request.honour in ("auto", "native") and request.region is None and request.mask is None
    if not (config.transformer.conditioned and native and request.task in OF_GIVEN_FRAMES):
        raise BadRequest(f"{given[0]} applies only to frames that the network is given: leave it out of {request.task}")
    if "dynamic_image" in given and request.task not in OF_IMAGES:
        raise BadRequest(f"dynamic_image applies only to given images: leave it out of {request.task}")


def _check_motion_score(request: Request) -> None:
    prompts = [request.prompt, *request.prompt_spans.values()]
    if not any(prompt.strip() for prompt in prompts):
        raise BadRequest("motion_score is added to the prompt, which is empty: give a prompt, or leave it out")
    if any(map(has_motion_score, prompts)):
        raise BadRequest("the prompt states its motion score already: leave motion_score out")


def _check_range(name: str, value: Any) -> None:
    least, most = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadRequest(f"{name} is {quoted(value)}; expected a number from {least:g} to {most:g}")
    if name.startswith("decode_") and not isinstance(value, int):
        raise BadRequest(f"{name} is {quoted(value)}; expected a whole number of latent frames or cells")
