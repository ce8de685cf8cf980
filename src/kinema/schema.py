"""Shapes, clips, requests and the errors that callers see.

Everything here is a frozen dataclass that imports without torch, so that the command line, the
registry and a web form can describe a request before any heavy library is loaded.

Letters: B batch, C channels, T frames, H height, W width (pixels unless a latent is named).
Pixels are float in [-1, 1] and ``BCTHW`` at every public boundary.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_type_hints

from kinema import values
from kinema.values import quoted

if TYPE_CHECKING:
    from torch import Tensor

TaskName = Literal["generate", "animate", "interpolate", "extend", "inpaint", "edit", "upscale"]
Honour = Literal["auto", "native", "continuation", "replacement", "reconstruction"]
Colours = Literal["free", "seam", "anchor"]
Fit = Literal["crop", "pad"]
WindowWeights = Literal["flat", "pyramid", "relative", "overlap-linear"]
NoiseType = Literal["shuffle-context", "repeat-context"]
LowPass = Literal["butterworth", "gaussian", "ideal", "box"]

MAX_FRAMES = 4096
MAX_SIDE = 8192
MAX_PIXELS = 2**31
"""Frames × height × width a request may ask for: beyond it nothing we run could answer."""


class BadRequest(ValueError):
    """The user asked for something impossible: one clear sentence, exit code 2, no traceback."""


class Cancelled(Exception):
    """A run was ended by its `kinema.Cancel`. ``clip`` is what there was of it; None unless that was asked for."""

    def __init__(self, message: str = "cancelled", clip: Clip | None = None, *, keep_partial: bool = False) -> None:
        super().__init__(message)
        self.clip, self.keep_partial = clip, keep_partial


# --------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """A video's shape, in pixels or latent cells (`kinema.grid` goes from one to the other)."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    @property
    def bcthw(self) -> tuple[int, int, int, int, int]:
        return (self.batch, self.channels, self.frames, self.height, self.width)

    def grid(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens along (T, H, W) when the video is cut into ``patch``-sized boxes."""
        sides = (self.frames, self.height, self.width)
        for side, size in zip(sides, patch, strict=True):
            if side % size:
                raise BadRequest(f"a video of {self.bcthw} does not divide into patches of {patch}")
        return (self.frames // patch[0], self.height // patch[1], self.width // patch[2])

    @staticmethod
    def of(video_bcthw: Tensor) -> Shape:
        if video_bcthw.ndim != 5:
            raise BadRequest(f"a video must be B×C×T×H×W, this one is {tuple(video_bcthw.shape)}")
        return Shape(*video_bcthw.shape)


# -------------------------------------------------------------------------------------------- clip


@dataclass(frozen=True)
class Clip:
    """A finished video: ``video`` B×3×T×H×W in [-1, 1], frames per second, and how it was made.

    ``sound`` is an mp4 without pictures (`kinema.media.sound`), as long as the clip or shorter; only an mp4 keeps it.
    """

    video: Tensor
    fps: float = 8.0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sound: bytes | None = field(default=None, repr=False)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.video)

    def save(self, path: str | Path, **options: Any) -> list[Path]:
        """Write an mp4, gif, webp or a folder of png frames, by suffix; one file per batch item.

        The recipe goes into the file's metadata. Returns the paths written. The file is written
        beside its name and renamed, so a stopped run leaves the old one or none; with ``exclusive=True`` nothing
        that exists is replaced, which raises `kinema.atomic.AlreadyExists`.
        """
        # schema is the lowest layer: it reaches the media layer by name only, as the registry does.
        return values.resolve("kinema.media.write:save_clip")(self, Path(path), **options)


# -------------------------------------------------------------------------------------- request

_FILES = ("image", "last_image", "video", "mask")
_FRAME = re.compile(r"[0-9]{1,4}")
_HELD = ("honour", "reconstruction_weight", "fit")
_REGION = ("mask", "region", "outside")
_SECOND = ("super_resolution", "super_resolution_weight")
_CLIP = ("video", "start", "end")
FREE_INIT = ("free_init", "free_init_filter", "free_init_order", "free_init_stop", "free_init_fast")
TAKES: dict[TaskName, tuple[str, ...]] = {
    "generate": ("loop", "every", *FREE_INIT, *_SECOND),
    "animate": ("image", "start", "last_image", "keyframes", "loop", *_REGION, *_HELD, *FREE_INIT, *_SECOND),
    "interpolate": (*_CLIP, "image", "last_image", "every", *_HELD, *FREE_INIT, *_SECOND),
    "extend": (*_CLIP, "keep", "backward", "loop", *_HELD, *FREE_INIT, *_SECOND),
    "inpaint": (*_CLIP, *_REGION, *_HELD, *FREE_INIT, *_SECOND),
    "edit": (*_CLIP, "strength", "fit", *_SECOND),
    "upscale": (*_CLIP, "scale", "every", "fit", "super_resolution_weight"),
}
"""The fields of a `Request` that mean something to a verb, beyond those of sampling; others are refused."""


def option(
    help_: str, default: Any = None, *, least: float | None = None, most: float | None = None, path: bool = False
) -> Any:
    """A request field with its help, its range, and whether it names a file: read by the checks and the CLI."""
    return field(default=default, metadata={"help": help_, "least": least, "most": most, "path": path})


def by_frame(help_: str, word: str, metavar: str, wanted: str, *, path: bool = False) -> Any:
    """A request field of frames with texts: what the command line calls one of them, and what errors say it wants."""
    told = {"help": help_, "word": word, "metavar": metavar, "wanted": wanted, "path": path}
    return field(default_factory=dict, metadata=told)


def plain(value: float) -> str:
    """A number as people write it: whole ones without a point, and without an exponent up to 15 digits."""
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for. ``None`` means "the model's own default"; `System.settle` fills it.

    Paths stay paths here; tasks read them. A request of plain values survives JSON unchanged, which
    is what the metadata of an mp4 holds and ``kinema replay`` reads.
    """

    task: TaskName = "generate"
    prompt: str = option("what to show", "")
    prompt_spans: Mapping[str, str] = by_frame(
        "prompt at a frame (8) or over frames (8-15), after PROMPT, which is that of frame 0; the last holds to the "
        "end; may be repeated",
        word="prompt-at",
        metavar="FRAMES=TEXT",
        wanted="frames with texts",
    )
    """`kinema.spans` reads it; in Python a single frame may be a number."""
    negative_prompt: str = option("what to steer away from", "")
    seed: int | None = option("random seed; drawn and recorded when left out", None, least=0, most=2**63 - 1)
    clips: int = option("clips to make in one batch", 1, least=1, most=64)

    frames: int | None = option("frames to make", None, least=1, most=MAX_FRAMES)
    height: int | None = option("height in pixels", None, least=1, most=MAX_SIDE)
    width: int | None = option("width in pixels", None, least=1, most=MAX_SIDE)
    fps: float | None = option("frames per second of the clip", None, least=0.1, most=240)

    steps: int | None = option("sampling steps", None, least=1, most=10_000)
    sampler: str | None = option("sampler, by name (see `kinema models --samplers`)", None)
    guidance: float | None = option("classifier-free guidance scale; 1 is off", None, least=-100, most=1000)
    guidance_end: float | None = option(
        "guidance at the last frame, when it changes over frames", None, least=-100, most=1000
    )
    guidance_rescale: float = option("pull guided contrast back to the unguided (0..1)", 0.0, least=0, most=1)
    guidance_interval: tuple[float, float] | None = option("log-SNR range in which guidance acts", None)
    eta: float | None = option("noise put back at each step (0 is deterministic)", None, least=0, most=1)
    sampler_options: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"help": "an option of the sampler, such as gamma=0.3 or delta=0.1; may be repeated"},
    )

    loras: Mapping[str, float] | None = option("LoRA files and their weights; left out, those that the model has", None)

    image: str | None = option("picture or clip whose first frame starts the video", None, path=True)
    last_image: str | None = option("picture that ends the video", None, path=True)
    keyframes: Mapping[str, str] = by_frame(
        "picture, or clip whose first frame is taken, to be at a frame (the first is 0); may be repeated",
        word="keyframe",
        metavar="FRAME=PATH",
        wanted="frames with files",
        path=True,
    )
    """In order. In Python a frame may be a number and a file a path."""
    video: str | None = option("clip to interpolate, extend, inpaint or edit", None, path=True)
    start: str | float | None = option("trim the clip (a mask clip too): begin at 1.5 or 0:01.5 (seconds) or 36f")
    end: str | float | None = option(
        "trim the clip: stop before 2.5 or 60f, which is left out; frames count from 0f once an uneven rate is even"
    )
    mask: str | None = option("picture or clip, white where new content is wanted", None, path=True)
    region: tuple[float, float, float, float] | None = option(
        "box left,top,right,bottom in fractions of the frame, where new content is wanted", None
    )
    outside: bool = option("make new content outside the region instead of inside", False)
    every: int | None = option(
        "one frame in this many is given (interpolate) or made by the first stage (generate), and the rest filled in",
        None,
        least=2,
        most=MAX_FRAMES,
    )
    keep: int | None = option("extend: frames of the clip to continue from", None, least=1, most=MAX_FRAMES)
    backward: bool = option("extend to before the clip instead of after it", False)
    loop: bool = option("make the last frame lead back to the first", False)
    strength: float = option("edit: 0 keeps the source, 1 forgets it", 0.6, least=0, most=1)
    fit: Fit = option("how a picture of another shape is fitted: crop or pad", "crop")

    honour: Honour = option(
        "how given pixels are held: the model's own way, going on from the last, or guidance", "auto"
    )
    reconstruction_weight: float = option("w_r of reconstruction guidance", 2.0, least=0, most=1000)
    colours: Colours = option(
        "against drift: new frames take the colours of the given ones beside (seam), or of the first (anchor)", "free"
    )
    window: int | None = option("frames seen at once, for clips longer than the model", None, least=1, most=MAX_FRAMES)
    overlap: int | None = option("frames shared by neighbouring windows", None, least=0, most=MAX_FRAMES)
    window_places: Literal["static", "uniform"] = option("whether windows stay, or move at each step", "static")
    window_weights: WindowWeights = option("how windows are blended", "pyramid")
    window_stride: int = option(
        "2: uniform windows also of every second frame; 3: also of every fourth; and so on", 1, least=1, most=8
    )
    window_in: Literal["denoiser", "attention"] = option(
        "what works in windows: the whole network, or only its attention over time (FreeNoise, views)", "denoiser"
    )
    noise_type: NoiseType | None = option(
        "noise of a clip in windows: that of the first window, shuffled (FreeNoise) or repeated, all along", None
    )
    free_init: int | None = option(
        "FreeInit: times to sample, each from noise with the low frequencies of what came before",
        None,
        least=1,
        most=20,
    )
    free_init_filter: LowPass = option("FreeInit: what parts low frequencies from high ones", "butterworth")
    free_init_order: int = option("FreeInit: order of the butterworth filter", 4, least=1, most=64)
    free_init_stop: tuple[float, float] = option(
        "FreeInit: stop frequencies over space and over time, 0 to 1", (0.25, 0.25)
    )
    free_init_fast: bool = option("FreeInit: fewer steps at first, all of them the last time", False)

    super_resolution: str | None = option("model of a second stage that makes the clip larger", None, path=True)
    scale: int | None = option(
        "upscale: times the clip's sides; left out, those that the size makes", None, least=2, most=16
    )
    super_resolution_weight: float = option("w_r of super-resolution by guidance", 9.0, least=0, most=1000)

    extra: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "an option of one model family, such as motion-bucket=127; may be repeated", "path": True},
    )
    """Options of one family (motion bucket, noise augmentation…); an unknown one is refused by it."""

    def __post_init__(self) -> None:
        for f in fields(self):
            told = getattr(self, f.name)
            value = _kept(f, told)
            if value is not told:
                object.__setattr__(self, f.name, value)
            _check(f, value)
        object.__setattr__(self, "keyframes", _in_order(self.keyframes))
        if self.frames and self.height and self.width and self.pixels > MAX_PIXELS:
            raise BadRequest(
                f"{self.clips} clip(s) of {self.frames} frames at {self.width}×{self.height} is more than "
                f"{MAX_PIXELS:,} pixels; ask for fewer frames or a smaller size"
            )
        if self.guidance_interval and not self.guidance_interval[0] <= self.guidance_interval[1]:
            raise BadRequest(f"guidance_interval is {quoted(self.guidance_interval)}; expected the lower log-SNR first")
        if not all(0 <= stop <= 1 for stop in self.free_init_stop):
            raise BadRequest(f"free_init_stop is {quoted(self.free_init_stop)}; expected two frequencies from 0 to 1")
        if self.region is not None:
            left, top, right, bottom = self.region
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                wanted = "expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
                raise BadRequest(f"region is {quoted(self.region)}; {wanted}")

    @property
    def pixels(self) -> int:
        return self.clips * (self.frames or 0) * (self.height or 0) * (self.width or 0)

    @property
    def shape(self) -> Shape:
        """The pixel shape asked for; only after `System.settle`."""
        if self.frames is None or self.height is None or self.width is None:
            raise RuntimeError("this request has no size yet: call System.settle first")
        return Shape(self.clips, 3, self.frames, self.height, self.width)

    def with_(self, **changes: Any) -> Request:
        return replace(self, **changes)

    def files(self) -> dict[str, str]:
        """The files and folders it names, by "image", "last_image", "video", "mask" or "keyframe 5".

        Those of a family's options are in ``extra``, and only the family can tell them.
        """
        own = {name: value for name in _FILES if (value := getattr(self, name))}
        return own | {f"keyframe {frame}": file for frame, file in self.keyframes.items()}

    def with_files(self, files: Mapping[str, str]) -> Request:
        """The request with other files for those of these names, which are as in `files`."""
        own: dict[str, Any] = {name: files[name] for name in _FILES if name in files}
        keyframes = {frame: files.get(f"keyframe {frame}", file) for frame, file in self.keyframes.items()}
        return replace(self, **own, keyframes=keyframes)

    def to_json(self) -> str:
        """Only what differs from the defaults, in a stable order."""
        default = Request()
        told = {k: v for k, v in asdict(self).items() if v != getattr(default, k) or k == "task"}
        return json.dumps(_plain_data(told), sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Request:
        """The request that `to_json` wrote; raises as `from_table` does."""
        return Request.from_table(json.loads(text))

    @staticmethod
    def from_table(told: Any) -> Request:
        """A request of names and plain values. Raises `BadRequest` for an unknown name or a value of another kind."""
        if not isinstance(told, Mapping):
            raise BadRequest(f"the request is {quoted(told)}; expected a table of options")
        known = {f.name for f in fields(Request)}
        for name in told:
            if name not in known:
                raise BadRequest(f"the request has an option {quoted(name)} that this version does not know")
        return Request(**told)


@lru_cache(maxsize=1)
def _hints() -> Mapping[str, Any]:
    return get_type_hints(Request)


def _kept(f: Field[Any], value: Any) -> Any:
    """A field's value as a request keeps it: files and frame numbers as text, lists as tuples."""
    if "wanted" in f.metadata and isinstance(value, Mapping):
        made = {_frame(frame): str(text) if isinstance(text, Path) else text for frame, text in value.items()}
        return made if len(made) == len(value) else value
    if isinstance(value, Path) and f.name in _FILES:
        return str(value)
    return tuple(value) if isinstance(value, list) else value


def _frame(told: Any) -> Any:
    """A frame's number as text; what is no such number, `_check` refuses."""
    whole = isinstance(told, SupportsIndex) and not isinstance(told, bool)
    return str(index(told)) if whole and index(told).bit_length() < 64 else told


def _in_order(keyframes: Mapping[str, str]) -> dict[str, str]:
    """Keyframes by number, written one way. Raises `BadRequest` for what is no frame, or one twice."""
    for frame, file in keyframes.items():
        if not _FRAME.fullmatch(frame) or int(frame) >= MAX_FRAMES or not file:
            wanted = f"frames from 0 to {MAX_FRAMES - 1} with files"
            raise BadRequest(f"keyframes is {quoted(keyframes)}; expected {wanted}")
    made = {str(int(frame)): keyframes[frame] for frame in sorted(keyframes, key=int)}
    if len(made) < len(keyframes):
        raise BadRequest(f"keyframes is {quoted(keyframes)}; expected each frame once")
    return made


def _check(f: Field[Any], value: Any) -> None:
    """Refuse a field's value of another type than its annotation, or out of its range, in one sentence."""
    hint, least, most = _hints()[f.name], f.metadata.get("least"), f.metadata.get("most")
    within = "" if least is None or most is None else f"{plain(least)} to {plain(most)}"
    infinite = isinstance(value, float) and not math.isfinite(value)
    if not values.fits(value, hint) or (within and infinite):
        wanted = f.metadata.get("wanted") or values.expected(hint) + (f" from {within}" if within else "")
        raise BadRequest(f"{f.name} is {quoted(value)}; expected {wanted}")
    if within and value is not None and not least <= value <= most:
        told = plain(value) if isinstance(value, float) else quoted(value)
        raise BadRequest(f"{f.name} is {told}; expected {within}")


def _plain_data(value: Any) -> Any:
    """What JSON can hold: paths as text, also as names; frame numbers as names as they are read back."""
    if isinstance(value, Mapping):
        return {str(name) if isinstance(name, Path | int) else name: _plain_data(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(each) for each in value]
    return str(value) if isinstance(value, Path) else value
