"""Shapes, clips, requests and the errors that callers see.

These are frozen dataclasses that import without torch, so the command line and the registry can describe a request
before any heavy library is loaded.

Shapes: B batch, C channels, T frames, H height, W width, in pixels unless stated otherwise. Videos are ``BCTHW`` floats
in [-1, 1] at every public boundary.
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
PromptSyntax = Literal["a1111", "comfy", "plain"]
WindowWeights = Literal["flat", "pyramid", "relative", "overlap-linear"]
NoiseType = Literal["shuffle-context", "repeat-context"]
Spacing = Literal[
    "uniform", "linspace", "respaced", "leading", "trailing", "open-linspace", "open-leading", "karras", "log-snr"
]
LowPass = Literal["butterworth", "gaussian", "ideal", "box"]

MAX_FRAMES = 4096
MAX_SIDE = 8192
MAX_PIXELS = 2**31
"""Maximum clips × frames × height × width of a request."""


class BadRequest(ValueError):
    """An invalid request. The message is one sentence; the command line prints it and exits with code 2."""


class MissingFiles(BadRequest):
    """Files that a model needs besides its weights are not on this machine; ``args`` has one sentence for each."""

    def __str__(self) -> str:
        return "; ".join(self.args)


class Cancelled(Exception):
    """A run was cancelled by its `kinema.Cancel`. ``clip`` is the partial clip, if it was to be kept.

    ``small`` is then the finished clip of the base stage, if super-resolution was cancelled.
    """

    def __init__(
        self,
        message: str = "cancelled",
        clip: Clip | None = None,
        *,
        keep_partial: bool = False,
        small: Clip | None = None,
    ) -> None:
        super().__init__(message)
        self.clip, self.keep_partial, self.small = clip, keep_partial, small


class JobFailed(Exception):
    """A service accepted a job and could not finish it, or cannot be reached any more. The message is one sentence."""


# --------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """A video's shape, in pixels or latent cells (`kinema.grid` converts between them)."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    @property
    def bcthw(self) -> tuple[int, int, int, int, int]:
        return (self.batch, self.channels, self.frames, self.height, self.width)

    def grid(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the number of patches along (T, H, W). Raises BadRequest unless ``patch`` divides the video."""
        sides = (self.frames, self.height, self.width)
        for side, size in zip(sides, patch, strict=True):
            if side % size:
                raise BadRequest(f"video shape {self.bcthw} does not divide into patches of {patch}")
        return (self.frames // patch[0], self.height // patch[1], self.width // patch[2])

    @staticmethod
    def of(video_bcthw: Tensor) -> Shape:
        if video_bcthw.ndim != 5:
            raise BadRequest(f"video has shape {tuple(video_bcthw.shape)}; expected B×C×T×H×W")
        return Shape(*video_bcthw.shape)


# -------------------------------------------------------------------------------------------- clip


@dataclass(frozen=True)
class Clip:
    """A finished video: ``video`` B×3×T×H×W in [-1, 1], frames per second and the recipe.

    ``sound`` is an audio-only mp4 (`kinema.media.sound`), at most as long as the clip; only mp4 output keeps it.
    """

    video: Tensor
    fps: float = 8.0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sound: bytes | None = field(default=None, repr=False)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.video)

    def save(self, path: str | Path, **options: Any) -> list[Path]:
        """Write an mp4, gif, webp or a folder of png frames, chosen by suffix: one file per clip of the batch.

        The recipe is stored in the file's metadata. Returns the paths written. Files are written atomically, so an
        interrupted run leaves the old file or none. With ``exclusive=True`` an existing file raises
        `kinema.atomic.AlreadyExists`.
        """
        # This module is below the media layer, so it resolves the writer by name.
        return values.resolve("kinema.media.write:save_clip")(self, Path(path), **options)


# -------------------------------------------------------------------------------------- request

_FILES = ("image", "last_image", "video", "mask")
_FRAME = re.compile(r"[0-9]{1,4}")
_GIVEN = ("honour", "reconstruction_weight", "fit")
_REGION = ("mask", "region", "outside")
_BY_FRAME = ("keyframes", "masks")
"""Fields that map frames to files."""
_SUPER_RESOLUTION = ("super_resolution", "super_resolution_weight")
_VIDEO = ("video", "start", "end")
_IMAGES = ("image", "image_model", "last_image", "keyframes")
FREE_INIT = ("free_init", "free_init_filter", "free_init_order", "free_init_stop", "free_init_fast")
TASK_FIELDS: dict[TaskName, tuple[str, ...]] = {
    "generate": ("loop", "every", *FREE_INIT, *_SUPER_RESOLUTION),
    "animate": (*_IMAGES, "start", "loop", *_REGION, *_GIVEN, *FREE_INIT, *_SUPER_RESOLUTION),
    "interpolate": (*_VIDEO, "image", "last_image", "every", *_GIVEN, *FREE_INIT, *_SUPER_RESOLUTION),
    "extend": (*_VIDEO, "keep", "backward", "loop", *_GIVEN, *FREE_INIT, *_SUPER_RESOLUTION),
    "inpaint": (*_VIDEO, *_REGION, "masks", *_GIVEN, *FREE_INIT, *_SUPER_RESOLUTION),
    "edit": (*_VIDEO, "strength", "fit", *_SUPER_RESOLUTION),
    "upscale": (*_VIDEO, "scale", "every", "fit", "super_resolution_weight"),
}
"""The `Request` fields that each task uses in addition to the sampling fields; others are refused."""


def option(
    help_: str, default: Any = None, *, least: float | None = None, most: float | None = None, path: bool = False
) -> Any:
    """Declare a request field with its help, its range, and whether it is a path, for the checks and the CLI."""
    return field(default=default, metadata={"help": help_, "least": least, "most": most, "path": path})


def by_frame(help_: str, word: str, metavar: str, expected: str, *, path: bool = False) -> Any:
    """Declare a request field that maps frames to text.

    ``word`` and ``metavar`` are the option's name and form on the command line; ``expected`` is for error messages.
    """
    metadata = {"help": help_, "word": word, "metavar": metavar, "expected": expected, "path": path}
    return field(default_factory=dict, metadata=metadata)


def plain_number(value: float) -> str:
    """Format a number: integers without a decimal point, and without an exponent up to 15 digits."""
    whole = isinstance(value, int) or (abs(value) < 1e15 and value == int(value))
    return str(int(value)) if whole else f"{value:g}"


def flag(name: str) -> str:
    """Return the command-line option of a `Request` field, such as ``--prompt-at`` for ``prompt_spans``."""
    word = next((f.metadata.get("word") for f in fields(Request) if f.name == name), None)
    return f"--{word or name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for. ``None`` means the model's default, which `System.settle` fills in.

    Files are stored as paths; tasks read them. A request round-trips through JSON, which the recipe in a clip's
    metadata stores and ``kinema replay`` reads.
    """

    task: TaskName = "generate"
    prompt: str = option("text that describes the clip", "")
    prompt_spans: Mapping[str, str] = by_frame(
        "prompt at a frame (8) or over a range of frames (8-15); PROMPT applies at frame 0, and the last prompt holds "
        "to the end; may be repeated",
        word="prompt-at",
        metavar="FRAMES=TEXT",
        expected="frames mapped to prompts",
    )
    """Parsed by `kinema.spans`; in Python a single frame may be an int."""
    negative_prompt: str = option("text that describes what to avoid", "")
    prompt_syntax: PromptSyntax | None = option(
        "how weights and steps are written in prompts: as in AUTOMATIC1111 or ComfyUI, or plain text; default: the "
        "model's own"
    )
    seed: int | None = option("random seed; default: random, and stored in the recipe", None, least=0, most=2**63 - 1)
    clips: int = option("clips to generate in one batch", 1, least=1, most=64)

    frames: int | None = option("frames of the finished clip", None, least=1, most=MAX_FRAMES)
    height: int | None = option("height in pixels", None, least=1, most=MAX_SIDE)
    width: int | None = option("width in pixels", None, least=1, most=MAX_SIDE)
    size: str | None = option("named size of the model, such as 768px:16:9 (see `kinema models NAME`)")
    """A name in `Defaults.sizes`; settling replaces it by ``height`` and ``width``."""
    fps: float | None = option("frames per second of the clip", None, least=0.1, most=240)

    steps: int | None = option("sampling steps", None, least=1, most=10_000)
    sampler: str | None = option("name of the sampler (see `kinema models --samplers`)", None)
    guidance: float | None = option("classifier-free guidance scale; 1 is off", None, least=-100, most=1000)
    guidance_end: float | None = option(
        "guidance scale at the last frame, if it changes over the frames", None, least=-100, most=1000
    )
    guidance_rescale: float = option("guidance rescale, 0 to 1 (Lin et al. 2023)", 0.0, least=0, most=1)
    guidance_interval: tuple[float, float] | None = option("log-SNR range in which guidance is applied", None)
    """An end may be infinite; in JSON it is null."""
    eta: float | None = option("noise added at each step (0 is deterministic)", None, least=0, most=1)
    spacing: Spacing | None = option(
        "how steps are spread over the noise levels; default: the model's. leading, trailing and linspace are those of "
        "diffusers' DDIM and Euler; open-linspace and open-leading are those of its DPM++ and UniPC"
    )
    karras: bool = option("space steps as in Karras et al. (2022), between the ends of the spacing", False)
    sampler_options: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"help": "sampler option, such as gamma=0.3 or delta=0.1; may be repeated"},
    )

    loras: Mapping[str, float] | None = option("LoRA files and their weights; default: the model's own", None)
    lora_folder: str | None = option("folder of the LoRAs that prompts name as <lora:NAME:WEIGHT>", None, path=True)
    """Not recorded: a job has the files in ``loras``."""

    image: str | None = option("image or clip whose first frame starts the video", None, path=True)
    image_model: str | None = option(
        "model that generates the first frame from the prompt, in place of an image", None, path=True
    )
    last_image: str | None = option("image that ends the video", None, path=True)
    keyframes: Mapping[str, str] = by_frame(
        "image, or clip whose first frame is used, at a frame (counted from 0); may be repeated",
        word="keyframe",
        metavar="FRAME=PATH",
        expected="frames mapped to files",
        path=True,
    )
    """Sorted by frame. In Python a frame may be an int and a file a `Path`."""
    video: str | None = option("clip to work on", None, path=True)
    start: str | float | None = option(
        "start of the part of the clip (and mask clip) to use: 1.5 or 0:01.5 (seconds) or 36f (frame)"
    )
    end: str | float | None = option(
        "end of the part of the clip to use, exclusive: 2.5 or 60f; frames count from 0f, at a constant frame rate"
    )
    mask: str | None = option("image or clip that is white where new content is generated", None, path=True)
    masks: Mapping[str, str] = by_frame(
        "mask image painted for one frame (counted from 0), white where new content is generated; optical flow carries "
        "the masks to the frames between, before and after; may be repeated",
        word="mask-at",
        metavar="FRAME=PATH",
        expected="frames mapped to files",
        path=True,
    )
    """Sorted by frame, like ``keyframes``."""
    region: tuple[float, float, float, float] | None = option(
        "box left,top,right,bottom, as fractions of the frame, where new content is generated", None
    )
    outside: bool = option("generate new content outside the region or mask instead of inside", False)
    every: int | None = option(
        "fill in frames: every N-th frame of the result is one of the clip's, or of the base stage's (generate)",
        None,
        least=2,
        most=MAX_FRAMES,
    )
    keep: int | None = option("frames of the clip to continue from; default: all", None, least=1, most=MAX_FRAMES)
    backward: bool = option("add frames before the clip instead of after it", False)
    loop: bool = option("let the last frame lead back to the first", False)
    strength: float = option("how much may change: 0 keeps the clip, 1 ignores it", 0.6, least=0, most=1)
    fit: Fit = option("how to fit images of another aspect ratio: crop or pad", "crop")

    honour: Honour = option(
        "how given pixels are held: native (the model's own), continuation, replacement or reconstruction (guidance)",
        "auto",
    )
    reconstruction_weight: float = option("weight of reconstruction guidance (w_r of VDM)", 2.0, least=0, most=1000)
    colours: Colours = option(
        "reduce colour drift: match new frames to the adjacent given frames (seam) or to the first frame (anchor)",
        "free",
    )
    window: int | None = option(
        "frames per window, for clips longer than the model's limit", None, least=1, most=MAX_FRAMES
    )
    overlap: int | None = option("frames shared by neighbouring windows", None, least=0, most=MAX_FRAMES)
    window_places: Literal["static", "uniform"] = option("whether windows are fixed or move at each step", "static")
    window_weights: WindowWeights = option("how windows are blended", "pyramid")
    window_stride: int = option(
        "2: uniform windows also over every second frame; 3: also over every fourth; and so on", 1, least=1, most=8
    )
    window_in: Literal["denoiser", "attention"] = option(
        "apply windows to the whole network or only to its temporal attention (FreeNoise, views)", "denoiser"
    )
    noise_type: NoiseType | None = option(
        "initial noise of a clip in windows: the first window's, shuffled (FreeNoise) or repeated", None
    )
    free_init: int | None = option(
        "FreeInit: sampling passes; each starts from noise with the low frequencies of the previous result",
        None,
        least=1,
        most=20,
    )
    free_init_filter: LowPass = option("FreeInit: low-pass filter", "butterworth")
    free_init_order: int = option("FreeInit: order of the butterworth filter", 4, least=1, most=64)
    free_init_stop: tuple[float, float] = option(
        "FreeInit: spatial and temporal stop frequencies, 0 to 1", (0.25, 0.25)
    )
    free_init_fast: bool = option("FreeInit: fewer steps in the first passes, all steps in the last", False)

    super_resolution: str | None = option(
        'super-resolution model that enlarges the clip; "none" turns off the one that a model has by default',
        None,
        path=True,
    )
    scale: int | None = option(
        "enlargement factor of the sides; default: from the size of the output", None, least=2, most=16
    )
    super_resolution_weight: float = option(
        "weight of guidance by the small clip (w_r of VDM)", 9.0, least=0, most=1000
    )

    extra: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "option of the model family, such as motion-bucket=127; may be repeated", "path": True},
    )
    """Options of the model family (motion bucket, noise augmentation…); the family refuses unknown ones."""

    def __post_init__(self) -> None:
        for f in fields(self):
            given = getattr(self, f.name)
            if given is f.default:
                continue  # most fields of most requests; tests check the defaults
            value = _normalised(f, given)
            if value is not given:
                object.__setattr__(self, f.name, value)
            _check(f, value)
        for name in _BY_FRAME:
            object.__setattr__(self, name, _sorted(_one(name), getattr(self, name)))
        if self.frames and self.height and self.width and self.pixels > MAX_PIXELS:
            raise BadRequest(
                f"{values.counted(self.clips, 'clip')} of {self.frames} frames at {self.width}×{self.height} exceed "
                f"{MAX_PIXELS:,} pixels; ask for fewer frames or a smaller size"
            )
        low, high = self.guidance_interval or (0.0, 0.0)
        if not low <= high or low == math.inf or high == -math.inf:
            raise BadRequest(f"guidance_interval is {quoted(self.guidance_interval)}; expected the lower log-SNR first")
        if not all(0 <= stop <= 1 for stop in self.free_init_stop):
            raise BadRequest(f"free_init_stop is {quoted(self.free_init_stop)}; expected two frequencies from 0 to 1")
        if self.region is not None:
            left, top, right, bottom = self.region
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                expected = "expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
                raise BadRequest(f"region is {quoted(self.region)}; {expected}")

    @property
    def pixels(self) -> int:
        return self.clips * (self.frames or 0) * (self.height or 0) * (self.width or 0)

    @property
    def shape(self) -> Shape:
        """The requested shape in pixels; available after `System.settle`."""
        if self.frames is None or self.height is None or self.width is None:
            raise RuntimeError("request has no size: call System.settle first")
        return Shape(self.clips, 3, self.frames, self.height, self.width)

    def with_(self, **changes: Any) -> Request:
        return replace(self, **changes)

    def files(self) -> dict[str, str]:
        """Return the input files by role: "image", "last_image", "video", "mask", "keyframe 5" or "mask at 5".

        Files in ``extra`` are not included: only the family knows which of its options are files.
        """
        own = {name: value for name in _FILES if (value := getattr(self, name))}
        for name in _BY_FRAME:
            own |= {f"{_one(name)} {frame}": file for frame, file in getattr(self, name).items()}
        return own

    def with_files(self, files: Mapping[str, str]) -> Request:
        """Return the request with files replaced by role; see `files`."""
        own: dict[str, Any] = {name: files[name] for name in _FILES if name in files}
        for name in _BY_FRAME:
            given = getattr(self, name).items()
            own[name] = {frame: files.get(f"{_one(name)} {frame}", file) for frame, file in given}
        return replace(self, **own)

    def to_json(self) -> str:
        """Return the task and the fields that differ from the defaults as JSON with sorted keys."""
        default = Request()
        changed = {k: v for k, v in asdict(self).items() if v != getattr(default, k) or k == "task"}
        return json.dumps(_plain_data(changed), sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Request:
        """Parse the output of `to_json`; raises as `from_table` does."""
        return Request.from_table(json.loads(text))

    @staticmethod
    def from_table(data: Any) -> Request:
        """Build a request from parsed JSON. Raises `BadRequest` for unknown options and values of the wrong type."""
        if not isinstance(data, Mapping):
            raise BadRequest(f"the request is {quoted(data)}; expected a table of options")
        known = {f.name for f in fields(Request)}
        for name in data:
            if name not in known:
                raise BadRequest(f"the request has the option {quoted(name)}, which this version does not know")
        return Request(**data)


@lru_cache(maxsize=1)
def _hints() -> Mapping[str, Any]:
    return get_type_hints(Request)


def _normalised(f: Field[Any], value: Any) -> Any:
    """Convert a field's value to the stored form: paths and frame numbers as text, lists as tuples."""
    if "expected" in f.metadata and isinstance(value, Mapping):
        by_text = {_frame(frame): str(text) if isinstance(text, Path) else text for frame, text in value.items()}
        return by_text if len(by_text) == len(value) else value
    if isinstance(value, Path) and f.name in _FILES:
        return str(value)
    if f.name == "guidance_interval" and isinstance(value, list | tuple) and len(value) == 2:
        return tuple(end if given is None else given for given, end in zip(value, (-math.inf, math.inf), strict=True))
    return tuple(value) if isinstance(value, list) else value


def _frame(number: Any) -> Any:
    """Return an integer as text; other values unchanged, for `_check` to refuse."""
    whole = isinstance(number, SupportsIndex) and not isinstance(number, bool)
    return str(index(number)) if whole and index(number).bit_length() < 64 else number


def _one(name: str) -> str:
    """Return what one entry of a field by frame is called, such as "keyframe" or "mask at"."""
    return str(Request.__dataclass_fields__[name].metadata["word"]).replace("-", " ")


def _sorted(one: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return files sorted by frame, without leading zeros. Raises `BadRequest` for invalid or repeated frames."""
    for frame, file in files.items():
        if not _FRAME.fullmatch(frame) or int(frame) >= MAX_FRAMES:
            raise BadRequest(f"{one} {quoted(frame)} is not a frame; expected 0 to {MAX_FRAMES - 1}")
        if not file:
            raise BadRequest(f"{one} {int(frame)} has no file; expected an image or clip")
    ordered: dict[str, str] = {}
    for frame in sorted(files, key=int):
        if (number := str(int(frame))) in ordered:
            raise BadRequest(f"{one} {number} is given twice; give it once")
        ordered[number] = files[frame]
    return ordered


def _check(f: Field[Any], value: Any) -> None:
    """Raise `BadRequest` for a value of the wrong type or out of range."""
    hint, least, most = _hints()[f.name], f.metadata.get("least"), f.metadata.get("most")
    within = "" if least is None or most is None else f"{values.number(least)} to {values.number(most)}"
    infinite = isinstance(value, float) and not math.isfinite(value)
    if not values.matches(value, hint) or (within and infinite):
        if "expected" in f.metadata and isinstance(value, Mapping):
            _check_entries(f, value)
        expected = f.metadata.get("expected") or values.expected(hint) + (f" from {within}" if within else "")
        raise BadRequest(f"{f.name} is {quoted(value)}; expected {expected}")
    if f.name != "guidance_interval":  # JSON has no infinite numbers; only this field has open ends, which are null
        _check_finite(f.name, value)
    if within and value is not None and not least <= value <= most:
        number = plain_number(value) if isinstance(value, float) else quoted(value)
        raise BadRequest(f"{f.name} is {number}; expected {within}")


def _check_finite(name: str, value: Any) -> None:
    """Raise `BadRequest` for an infinite number, or none, in a value: it could not be recorded."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(f"{name} {quoted(key)}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_finite(name, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRequest(f"{name} is {value}; expected a finite number")


def _check_entries(f: Field[Any], value: Mapping[Any, Any]) -> None:
    """Raise `BadRequest` for an entry that does not map a frame to text, or a frame that is given twice."""
    one, seen = _one(f.name), set()
    for frame, text in value.items():
        number = _frame(frame)
        if not isinstance(number, str):
            raise BadRequest(f"{one} {quoted(frame)}: expected a frame number")
        shown = number if _FRAME.fullmatch(number) else quoted(number)
        if not isinstance(text, str | Path):
            raise BadRequest(f"{one} {shown} is {quoted(text)}; expected {'a file' if f.metadata['path'] else 'text'}")
        if number in seen:
            raise BadRequest(f"{one} {shown} is given twice; give it once")
        seen.add(number)


def _plain_data(value: Any) -> Any:
    """Convert a value to JSON types: paths to text, and the frame numbers and paths of mappings' keys too."""
    if isinstance(value, Mapping):
        return {str(name) if isinstance(name, Path | int) else name: _plain_data(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # an open end of guidance_interval: JSON has no infinite numbers
    return str(value) if isinstance(value, Path) else value
