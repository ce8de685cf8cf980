"""The verbs (generate, animate, …) and their options: one definition for the command line and the service's forms."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kinema.options import Option, from_dataclass
from kinema.schema import TASK_FIELDS, Request, TaskName

DEFAULT_MODEL = "zoetrope"


@dataclass(frozen=True)
class Verb:
    """Its help, an example, and the fields of `Request` that are positional."""

    about: str
    example: str
    positional: tuple[str, ...]


VERBS: dict[TaskName, Verb] = {
    "generate": Verb(
        "Generate a clip from a text prompt.",
        'kinema generate "a red ball rolls right" --seed 7 -o ball.mp4',
        ("prompt",),
    ),
    "animate": Verb(
        "Generate a clip from an image: the image is the first frame, the last one (--last-image) or any frame "
        "(--keyframe, with or without IMAGE), or another model generates it first (--image-model); --region limits the "
        "motion to a part of it.",
        'kinema animate photo.png "a blue box slides left" -o box.mp4',
        ("image", "prompt"),
    ),
    "interpolate": Verb(
        "Generate the frames in between: of a clip, or between two images (--image and --last-image).",
        "kinema interpolate clip.mp4 --every 4 -o smooth.mp4",
        ("video", "prompt"),
    ),
    "extend": Verb(
        "Continue a clip past its end, or generate what comes before it (--backward).",
        'kinema extend clip.mp4 "a red ball rolls right" --keep 8 -o longer.mp4',
        ("video", "prompt"),
    ),
    "inpaint": Verb(
        "Generate new content inside a region of a clip, or outside it (--outside).",
        'kinema inpaint clip.mp4 "a green star spins" --region 0.25,0.25,0.75,0.75 -o star.mp4',
        ("video", "prompt"),
    ),
    "edit": Verb(
        "Regenerate a clip from a noised version of it; --strength sets how much may change.",
        'kinema edit clip.mp4 "a yellow ring bounces" --strength 0.6 -o ring.mp4',
        ("video", "prompt"),
    ),
    "upscale": Verb(
        "Enlarge a clip, and optionally generate frames between its own (--every).",
        'kinema upscale small.mp4 "a red ball rolls right" -o large.mp4',
        ("video", "prompt"),
    ),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "main options": (
        *("output", "model", "image_model", "last_image", "keyframes", "region", "mask", "masks", "outside", "keep"),
        *("backward", "strength", "scale", "seed", "frames", "width", "height", "size", "steps", "guidance"),
        *("negative_prompt", "every", "motion", "prompts"),
    ),
    "clip": ("image", "start", "end", "prompt_spans", "prompt_syntax", "fps", "loop", "clips", "fit"),
    "sampling": (
        *(
            "sampler",
            "spacing",
            "karras",
            "sampler_options",
            "eta",
            "guidance_end",
            "guidance_rescale",
            "guidance_interval",
        ),
        *("honour", "reconstruction_weight", "colours"),
    ),
    "clips longer than the model's frame window": (
        *("window", "overlap", "window_places", "window_weights", "window_stride", "window_in", "noise_type"),
    ),
    "FreeInit": ("free_init", "free_init_filter", "free_init_order", "free_init_stop", "free_init_fast"),
    "super-resolution": ("super_resolution", "super_resolution_weight"),
    "LoRAs and add-ons": ("lora", "lora_folder", "embeddings", "add", "control", "ip_image", "extra", "variant"),
    "device and memory": (
        *("server", "device", "dtype", "threads", "memory", "offload", "chunk_tokens", "compile", "offline"),
    ),
    "output": ("overwrite", "preview", "keep_partial", "contact_sheet", "zoom", "record_paths"),
    "progress and configuration": ("quiet", "json_events", "config", "document"),
}
"""Headings of the help pages and of forms, and the options under each."""
FIRST: dict[TaskName, tuple[str, ...]] = {
    "generate": ("prompt", "model", "frames", "size", "steps", "seed"),
    "animate": ("image", "prompt", "model", "frames", "size", "seed"),
    "interpolate": ("video", "prompt", "model", "every", "size", "seed"),
    "extend": ("video", "prompt", "model", "frames", "keep", "seed"),
    "inpaint": ("video", "prompt", "region", "model", "size", "seed"),
    "edit": ("video", "prompt", "strength", "model", "size", "seed"),
    "upscale": ("video", "prompt", "model", "scale", "every", "seed"),
}
"""The options of each verb that a form shows before it shows all; "size" stands for width and height too."""
MODEL = [
    Option(
        "model",
        str,
        DEFAULT_MODEL,
        "name listed by `kinema models`, Hugging Face repository, folder or weight file",
        short="-m",
        metavar="NAME|PATH",
        path=True,
    ),
    Option(
        "variant",
        str | None,
        None,
        "file variant in a model folder (fp16), or which published model a weight file is (svd-xt)",
        metavar="NAME",
    ),
    Option(
        "lora",
        list[str],
        [],
        "LoRA file, optionally with a weight (default 1) after a colon; may be repeated",
        metavar="PATH[:WEIGHT]",
        path=True,
    ),
    Option(
        "add",
        list[str],
        [],
        "load an add-on into a slot of the model: motion=FILE, controlnet.depth=FILE; may be repeated",
        metavar="SLOT=PATH",
        path=True,
    ),
    Option(
        "device",
        str | None,
        None,
        "cpu, cuda:0, mps, …; by default the GPU if there is one",
        metavar="NAME",
    ),
    Option(
        "dtype",
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        None,
        "compute precision; by default that of the weight file on a GPU and fp32 on a CPU; auto also uses bf16 on CPUs "
        "that support it natively",
    ),
    Option("threads", int | None, None, "CPU threads"),
    Option("offline", bool, False, "never download; use only files on this machine"),
    Option(
        "memory", str | None, None, "memory limit, such as 8GiB; by default most of the free memory", metavar="SIZE"
    ),
    Option(
        "offload",
        Literal["auto", "none", "model", "block", "sequential"],
        "auto",
        "which weights to load only while they run; auto offloads only when the request would not fit otherwise",
    ),
    Option("chunk_tokens", int | None, None, "tokens that feed-forward layers process at a time, to save memory"),
    Option("compile", bool, False, "compile the network's blocks: a slow first step, then faster ones"),
]
MOTION = Option(
    "motion",
    float | None,
    None,
    "amount of motion, for models conditioned on it; same as --extra motion-bucket=X",
)
CONTROL = Option(
    "control",
    list[str],
    [],
    "control clip or image (edges, depth, poses) for a ControlNet, with NAME= if there are several; Kinema does not "
    "extract edges, depth or poses itself; same as --extra control.NAME=PATH",
    metavar="[NAME=]PATH",
    path=True,
)
IP_IMAGE = Option(
    "ip_image",
    list[str],
    [],
    "reference image for an IP-Adapter, with NAME= if there are several; may be repeated; same as "
    "--extra ip-image.NAME=PATH",
    metavar="[NAME=]PATH",
    path=True,
)
EMBEDDINGS = Option(
    "embeddings",
    str | None,
    None,
    "folder of the textual-inversion embeddings that prompts name, as embedding:NAME or with AUTOMATIC1111's syntax by "
    "the bare name; same as --extra embeddings=FOLDER",
    metavar="FOLDER",
    path=True,
)


def request_options(task: TaskName) -> list[Option]:
    """The options of a verb that are fields of `Request`: the sampling options and those `TASK_FIELDS` lists for it."""
    others = {name for names in TASK_FIELDS.values() for name in names} - set(TASK_FIELDS[task])
    others |= {"task", "loras"}  # the verb itself; LoRAs come from --lora
    order = [f.name for f in fields(Request) if f.name not in others]
    return [*from_dataclass(Request, order, positional=VERBS[task].positional), MOTION, CONTROL, IP_IMAGE, EMBEDDINGS]
