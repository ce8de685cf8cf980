"""The options of Open-Sora 1.0 to 1.3 in ``Request.extra``: their ranges, their help and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from kinema import registry
from kinema.families.opensora.first_line.loops import Kind
from kinema.families.opensora.stdit.config import Version
from kinema.families.opensora.v1 import strategy
from kinema.families.opensora.v1.config import IMAGE_GUIDED, Config
from kinema.schema import BadRequest, Request, plain_number
from kinema.values import quoted

ALL: tuple[Version, ...] = ("1.0", "1.1", "1.2", "1.3")
HELD, SCORED, FLOW = ALL[1:], ALL[2:], ALL[2:]
OF_GIVEN_FRAMES = ("animate", "interpolate", "extend")
"""Tasks in which 1.3 takes given frames as an input."""


@dataclass(frozen=True)
class Number:
    """A number from ``least`` to ``most``."""

    versions: tuple[Version, ...]
    about: str
    least: float
    most: float
    whole: bool = False
    none: bool = False
    """Whether null is a value, too: nothing instead of a default."""
    text: tuple[Version, ...] = ()
    """Versions in which it may also be a word."""


@dataclass(frozen=True)
class Switch:
    """True or false."""

    versions: tuple[Version, ...]
    about: str


@dataclass(frozen=True)
class Text:
    """Text, or files; checked by what reads it."""

    versions: tuple[Version, ...]
    about: str


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    versions: tuple[Version, ...]
    about: str
    words: tuple[str, ...]


Option = Number | Switch | Text | Choice
OPTIONS: Mapping[str, Option] = {
    "mask_strategy": Text(
        HELD, "groups loop,reference,start,target,length,edit joined by ;: which frames of the references go where, in "
        "latent frames (1.1: pixel frames)"
    ),
    "reference_path": Text(HELD, "images and clips of the mask strategy or of cond_type, joined by ;"),
    "cond_type": Choice(("1.3",), "what the network is given of the references", get_args(Kind)),
    "align": Number(
        SCORED, "starts in mask strategies move to the nearest multiple, in latent frames; 0: none", 0, 1000, whole=True
    ),
    "loop": Number(HELD, "clips in a row, each of which begins with the end of the one before", 1, 256, whole=True),
    "condition_frame_length": Number(
        HELD, "frames that a loop begins with (1.1: pixel frames, default 4; later: latent frames, default 5)", 1, 1000,
        whole=True,
    ),
    "condition_frame_edit": Number(SCORED, "edit ratio of these frames; default 0", 0, 1),
    "keep_given": Switch(("1.1",), "keep given frames at the last step, where the original predicts them again"),
    "norm_twice": Switch(HELD, "norm given frames twice in the last layer, as published; default true"),
    "rotate_first": Switch(("1.1",), "rotate queries and keys before they are normed, as published; default true"),
    "guided_channels": Number(("1.0", "1.1"), "latent channels that are guided; default 3", 1, 4, whole=True),
    "told_fps": Number(HELD, "frame rate that the network gets", 1, 240),
    "aesthetic_score": Number(
        SCORED, "aesthetic score at the end of the prompt; null: none", 0, 100, none=True, text=("1.3",)
    ),
    "motion_score": Number(SCORED, "motion score at the end of the prompt", 0, 1000, none=True, text=("1.3",)),
    "camera_motion": Text(SCORED, "motion of the camera at the end of the prompt, such as 'pan left'"),
    "flow_shift": Number(FLOW, "shift of the noise levels; default from size and frames", 0.01, 100),
    "transform_scale": Number(("1.3",), "multiplies the shift of clips; default 1", 0.01, 100),
    "image_guidance": Number(("1.3",), "guidance scale of given frames", 0, 100),
    "oscillate": Switch(("1.3",), "guidance of the prompt is 1 at every odd step from the tenth on; default true"),
    "oscillate_image": Switch(("1.3",), "the same for guidance of given frames; default true"),
    "dynamic_image": Switch(("1.3",), "guidance of given frames grows from 1 at the first frame; default true"),
    "flaw_fix": Switch(("1.3",), "pull contrast back to the prompt's, without given frames; default true"),
    "sdedit": Switch(("1.3",), "given frames are put into the latents, noised, at every step; default true"),
    "decode_tile": Number(ALL, "side of squares decoded at a time, in latent cells; default all", 4, 4096, whole=True),
}  # fmt: skip
MOST_CHARACTERS = 5000
"""Of a prompt, of which 300 tokens at most are read: the published cleaning takes minutes for a megabyte."""
_OF_GIVEN = ("image_guidance", "oscillate_image", "dynamic_image", "sdedit")


def helped(config: Config) -> dict[str, str]:
    """Return one line of help for each option."""
    own = {
        "align": plain_number(config.align or 0),
        "told_fps": "the clip's" if config.told_fps is None else plain_number(config.told_fps),
        "image_guidance": plain_number(config.image_guidance),
        "aesthetic_score": "none" if config.aesthetic is None else plain_number(config.aesthetic),
    }

    def line(name: str, option: Option) -> str:
        about = option.about + (f"; default {own[name]}" if name in own else "")
        if isinstance(option, Number):
            return f"{about} ({plain_number(option.least)} to {plain_number(option.most)})"
        if isinstance(option, Choice):
            return f"{about} ({', '.join(option.words)})"
        return f"{about} (true or false)" if isinstance(option, Switch) else about

    return {name: line(name, option) for name, option in OPTIONS.items() if config.version in option.versions}


def check(config: Config, request: Request) -> None:
    """Raise BadRequest for unknown options, values out of range, and options without effect in this request."""
    check_values(config, request.extra)
    extra, prompts = request.extra, (request.prompt, *request.prompt_spans.values())
    if (longest := max(map(len, (*prompts, request.negative_prompt)))) > MOST_CHARACTERS:
        raise BadRequest(f"a prompt has {longest:,} characters; expected at most {MOST_CHARACTERS:,}")
    if "guided_channels" in extra and extra["guided_channels"] > config.stdit.channels:
        raise BadRequest(f"guided_channels is {extra['guided_channels']}; expected 1 to {config.stdit.channels}")
    if scored := [name for name in ("aesthetic_score", "motion_score", "camera_motion") if name in extra]:
        if not any(prompt.strip() for prompt in prompts):
            raise BadRequest(f"{scored[0]} is added to the prompt, which is empty: give a prompt, or leave it out")
    given = native_given(config, request)
    if not given and (name := next((name for name in _OF_GIVEN if name in extra), None)):
        raise BadRequest(f"{name} applies only to frames that the network is given: leave it out of {request.task}")
    if given and "flaw_fix" in extra:
        raise BadRequest("flaw_fix applies only to clips without given frames: leave it out")
    if config.version != "1.0":
        strategy.check(config, request)


def check_values(config: Config, extra: Mapping[str, Any]) -> None:
    """Raise BadRequest for unknown options and values of another type or out of range."""
    known = [name for name, option in OPTIONS.items() if config.version in option.versions]
    for name, value in extra.items():
        if name not in known:
            others = OPTIONS[name].versions if name in OPTIONS else ()
            if others:
                raise BadRequest(
                    f"Open-Sora {config.version} has no option {name}; it belongs to {' and '.join(others)}"
                )
            raise BadRequest(registry.unknown_name("option of opensora", name, known))
        option = OPTIONS[name]
        if isinstance(option, Switch) and not isinstance(value, bool):
            raise BadRequest(f"{name} is {quoted(value)}; expected true or false")
        if isinstance(option, Number):
            _check_number(config, name, value, option)
        if isinstance(option, Choice) and value not in option.words:
            raise BadRequest(f"{name} is {quoted(value)}; expected {', '.join(option.words)}")
        if name == "camera_motion" and (not isinstance(value, str) or not value.strip()):
            raise BadRequest(f"camera_motion is {quoted(value)}; expected text such as 'pan left'")
    strategy.groups(extra)
    strategy.references(extra)


def _check_number(config: Config, name: str, value: Any, option: Number) -> None:
    if (value is None and option.none) or (isinstance(value, str) and config.version in option.text and value.strip()):
        return
    inside = isinstance(value, int | float) and not isinstance(value, bool) and option.least <= value <= option.most
    if not inside or (option.whole and not isinstance(value, int)):
        kind = "a whole number" if option.whole else "a number"
        least, most = plain_number(option.least), plain_number(option.most)
        raise BadRequest(f"{name} is {quoted(value)}; expected {kind} from {least} to {most}")


def native_given(config: Config, request: Request) -> bool:
    """Whether 1.3 is given frames of the request as an input."""
    native = request.honour in ("auto", "native") and request.region is None and request.mask is None
    looped = request.extra.get("loop", 1) != 1
    given = request.task in OF_GIVEN_FRAMES or looped or "cond_type" in request.extra
    return config.stdit.takes_given and native and given


def guided_channels(config: Config, request: Request) -> int:
    return min(int(request.extra.get("guided_channels", IMAGE_GUIDED)), config.stdit.channels)
