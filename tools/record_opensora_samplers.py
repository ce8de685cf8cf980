"""Record runs of Open-Sora 1.x's own samplers, for the parity tests: python tools/record_opensora_samplers.py REPO

REPO is a git repository of github.com/hpcaitech/Open-Sora that has the commits of `COMMITS`. Their code runs aside, on
a CPU, with `stand_in` in the place of the network and NumPy's frozen generator in that of torch.randn_like. Needs ftfy
and beautifulsoup4 besides the test extra. What is recorded goes to tests/families/opensora/recorded/samplers-*.
"""

from __future__ import annotations

import ast
import importlib
import json
import random
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

COMMITS = {"1.0": "d7518da", "1.1": "c37e6d6", "1.2": "bde3c42", "1.3": "2ca632a"}
HERE = Path(__file__).resolve().parents[1] / "tests" / "families" / "opensora" / "recorded"
SHAPE = (2, 4, 6, 3, 2)
"""Latents of the runs, B×C×T×H×W."""
MASKS_1_1 = [[0.0, 0.4, 0.29, 1.0, 1.0, 0.4], [1.0, 1.0, 0.07, 0.99, 0.0, 0.005]]
MASKS_1_2 = [[0.0, 0.4, 0.8, 1.0, 0.2, 1.0], [1.0, 0.4, 1.0, 0.999, 0.0, 0.07]]
TEXT = [0.8, -0.5], [-0.3, 0.4]
"""What the stand-in reads of the prompts and of the null text, for each item."""
SIZE = {"height": 240, "width": 426, "num_frames": 51}
STRATEGIES = 400
CAPTIONS = [
    "A red Ball rolls RIGHT. ",
    "a dog in a park, 4k, https://example.com/a/b.html and www.foo.org now",
    "It&apos;s &amp;amp; &lt;b&gt;bold&lt;/b&gt; <i>text</i> here<br>there <script>var a=1;</script>",
    "@someone sees #123 and #12345 and 1234567 at 10.0.0.1",
    "“Quoted” ‘words’ — with – dashes… and «more»",
    "this-is-my-cute-cat photo_of_a_dog.png",
    "***SOLD OUT*** (free shipping) download free image.jpg page 12",
    "100% cotton + 50%25 url%20encoded",
    "jc6640 jc6640vc 6640vc231 j2d1a2a 1920x1080 2x4",
    "one.two,three/four a.b",
    '"quoted whole"',
    "'single whole'",
    "-leading and trailing-",
    "a lake . at dawn .",
    "日本語 and 中文 words ㍿",
    "ﬁre ﬂow full－width ＡＢＣ",
    "a beautiful waterfall aesthetic score: 6.5. motion score: 10.0. camera motion: pan left.",
    "A cat. The aesthetic score is good. The motion strength is high.",
    "click for more on page 3: see png images",
    "tabs\tand\\n newlines   and  spaces",
    "<person> walks; 3:45 ",
    "café naïve e\u0301",
    ".hidden",
    "a < b and c > d & e",
    "<!-- a comment -->x <style>p {}</style>y <p class='z'>z</p",
    "one\r\ntwo\u2028three \x07bell",
    "ＷＩＤＥ　ｓｐａｃｅ ĳsland ǆ don’t",
    "AT&T, R&amp;D &copy; 2024 &#39;x&#39; &nbsp;end",
    "ends with plus+",
    "a_b_c_d_e and x-y",
    "version 1.2.3.4 costs $5.99/day... ok ,then",
    "photo: jpg images, 3d model, 16:9, 4x4x4, 12abc34",
    "кошка 2х4 на столе",
    "",
]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def stand_in(z: Tensor, time: Tensor, generated: Tensor | None, text: Tensor, cond: Tensor | None = None) -> Tensor:
    """A fixed map in the place of a network: z B×C×T×H×W to 2C channels, affine but for a bounded second half.

    time [B] in [0, 1000], generated [B, T] (None: all), text [B] and cond (B×2C×T×H×W: given latents and their mask).
    """
    _, c, t, h, w = z.shape
    mix, frames, rest = normal(1, 2 * c, c) * 0.15, normal(2, t, t) * 0.15, normal(3, 4, 2 * c, 1, h, w) * 0.3
    out = torch.einsum("oc,bcthw->bothw", mix, z)
    out = out + torch.einsum("ts,bcshw->bcthw", frames, torch.cat([z, z.roll(1, 3)], 1))
    out[:, :c] += 0.9 * z
    out = out + rest[0] * torch.sin(time / 150).reshape(-1, 1, 1, 1, 1) + 0.1 * rest[1] * text.reshape(-1, 1, 1, 1, 1)
    if cond is not None:
        out = out + 0.5 * (cond.roll(1, 4) + cond.roll(2, 2))
    if generated is not None:
        out = torch.where(generated[:, None, :, None, None], out, 0.6 * out + rest[2])
    return torch.cat([out[:, :c], out[:, c:].tanh()], 1)


# ----------------------------------------------------------------------------- upstream's surroundings


def package(name: str, path: Path | None = None, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = [] if path is None else [str(path)]
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


class Registry:
    """mmengine's, of which only the decorator is used."""

    def register_module(self, *_names: str, **_options: Any) -> Callable[[Any], Any]:
        return lambda registered: registered


@contextmanager
def upstream(repository: str, version: str) -> Iterator[Path]:
    """The modules of a version, importable as ``opensora``, without what its ``__init__`` files import."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archive = subprocess.run(
            ["git", "-C", repository, "archive", COMMITS[version]], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
        before = dict(sys.modules)
        for name in ("", ".schedulers", ".utils", ".datasets", ".models", ".models.text_encoder"):
            package(f"opensora{name}", root / "opensora" / name.replace(".", "/").lstrip("/"))
        sys.modules["opensora.datasets"].IMG_FPS = 120
        package("opensora.datasets.utils", read_from_path=None)
        package("opensora.registry", SCHEDULERS=Registry(), MODELS=Registry())
        package("colossalai")
        package("colossalai.utils", get_current_device=lambda: "cpu")
        for name in ("tqdm", "tqdm.auto"):
            package(name, tqdm=lambda each, **_options: each)
        for name in ("matplotlib", "matplotlib.pyplot", "cv2", "pandas"):
            package(name)
        package("torchvision", transforms=None)
        try:
            yield root
        finally:
            for name in set(sys.modules) - set(before):
                del sys.modules[name]
            sys.modules.update(before)


@contextmanager
def numbered_noise() -> Iterator[None]:
    """torch.randn_like draws `normal(100)`, `normal(101)`, …"""
    drawn, original = iter(range(100, 10_000)), torch.randn_like
    torch.randn_like = lambda like, **_options: normal(next(drawn), *like.shape)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = original


class Text:
    """The text encoder: a number for each prompt."""

    tokenize_fn = staticmethod(lambda prompts: {"prompts": prompts})

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"y": torch.tensor([TEXT[0][int(prompt)] for prompt in prompts])}

    def null(self, _count: int) -> Tensor:
        return torch.tensor(TEXT[1])


class Model:
    """`stand_in` with upstream's signature; keeps the masks that it was given."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []

    def __call__(self, z: Tensor, time: Tensor, y: Tensor, x_mask: Tensor | None = None, **args: Any) -> Tensor:
        if x_mask is not None:
            self.masks.append(x_mask[: SHAPE[0]])
        cond = torch.cat([args["cond"], args["cond_mask"]], 1) if "cond" in args else None
        return stand_in(z, time.float(), x_mask, y, cond)

    forward = __call__


PROMPTS = ["0", "1"]


def iddpm(repository: str, version: str) -> dict[str, Tensor]:
    """Runs of 1.0 or 1.1. 1.1's schedule is in float32; "rounded" is a run with it, the others have it in float64."""
    found: dict[str, Tensor] = {}
    with upstream(repository, version):
        module = importlib.import_module("opensora.schedulers.iddpm")
        if version == "1.1":
            module.gd.GaussianDiffusion.__init__.__kwdefaults__["device"] = "cpu"
            rounded = module.IDDPM(num_sampling_steps=100, cfg_scale=7.0, cfg_channel=3)
            single, torch.FloatTensor = torch.FloatTensor, torch.DoubleTensor
            scheduler = module.IDDPM(num_sampling_steps=100, cfg_scale=7.0, cfg_channel=3)
            every = module.IDDPM(num_sampling_steps=50, cfg_scale=4.0)
            torch.FloatTensor = single
            mask, whole = torch.tensor(MASKS_1_1), torch.full((SHAPE[0], SHAPE[2]), 0.4)
            runs = {"masked": (scheduler, mask), "whole": (scheduler, whole), "free": (scheduler, None)}
            runs |= {"all-channels": (every, mask), "rounded": (rounded, mask)}
            for name, (each, mask) in runs.items():
                model = Model()
                with numbered_noise():
                    found[name] = each.sample(model, Text(), normal(99, *SHAPE), PROMPTS, "cpu", mask=mask).clone()
                if mask is not None:
                    found[f"{name}.told"] = torch.stack(model.masks)
        else:
            scheduler = module.IDDPM(num_sampling_steps=100, cfg_scale=7.0)
            first, torch.randn = torch.randn, lambda *shape, **_options: normal(99, *shape)  # type: ignore[assignment]
            with numbered_noise():
                found["free"] = scheduler.sample(Model(), Text(), SHAPE[1:], PROMPTS, "cpu").clone()
            torch.randn = first
        found["timesteps"] = torch.tensor(scheduler.timestep_map)
        found["betas"] = torch.as_tensor(scheduler.betas).double()
    return found


def size_of(batch: int, **changed: int) -> dict[str, Tensor]:
    return {name: torch.full((batch,), float(value)) for name, value in {**SIZE, **changed}.items()}


def rflow_1_2(repository: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with upstream(repository, "1.2"):
        module = importlib.import_module("opensora.schedulers.rf")
        scheduler = module.RFLOW(num_sampling_steps=30, cfg_scale=7.0, use_timestep_transform=True)
        plain = module.RFLOW(num_sampling_steps=30, cfg_scale=7.0)
        large = {"height": 720, "width": 1280, "num_frames": 102}
        runs = {"masked": (scheduler, SIZE), "large": (scheduler, large), "untransformed": (plain, SIZE)}
        for name, (each, size) in runs.items():
            model = Model()
            with numbered_noise():
                found[name] = each.sample(
                    model,
                    Text(),
                    normal(99, *SHAPE),
                    PROMPTS,
                    "cpu",
                    additional_args=size_of(2, **size),
                    mask=torch.tensor(MASKS_1_2),
                    progress=False,
                )
            found[f"{name}.told"] = torch.stack(model.masks)
    return found


def rflow_1_3(repository: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    given, index = normal(98, *SHAPE), [0, SHAPE[2] - 1]
    mask = torch.zeros(SHAPE)
    mask[:, :, index] = 1
    cond = {"z_cond": given, "z_cond_mask": mask, "mask_index": index, "image_cfg_scale": 5.0}
    both = {"use_oscillation_guidance_for_text": True, "use_oscillation_guidance_for_image": True}
    size = size_of(2, num_frames=113)
    with upstream(repository, "1.3"):
        module = importlib.import_module("opensora.schedulers.rf")
        base = {"num_sampling_steps": 30, "cfg_scale": 7.5, "use_timestep_transform": True}
        t2v = module.RFLOW(**base, use_oscillation_guidance=True, use_flaw_fix=True, transform_scale=2.0)
        i2v = module.RFLOW(**base, scale_temporal=False)
        v2v = module.RFLOW(**base, scale_image_weight=True)
        runs: dict[str, tuple[Any, dict[str, Any]]] = {
            "t2v": (t2v, {}),
            "t2v-masked": (t2v, {"mask": torch.tensor(MASKS_1_2)}),
            "i2v": (i2v, cond),
            "v2v-sdedit": (v2v, {**cond, **both, "use_sdedit": True}),
        }
        for name, (scheduler, options) in runs.items():
            with numbered_noise():
                args = {**options, "additional_args": dict(size), "progress": False}
                found[name] = scheduler.sample(Model(), Text(), normal(99, *SHAPE), PROMPTS, "cpu", **args)
    return found


# ----------------------------------------------------------------------------- masks, sizes, captions


def functions(path: Path, *names: str) -> dict[str, Any]:
    """Functions and constants of a script, without running the rest of it."""
    tree = ast.parse(path.read_text())
    defined: dict[str, Any] = {"torch": torch, "re": re, "json": json}
    for node in tree.body:
        named = node.name if isinstance(node, ast.FunctionDef) else ""
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named = node.targets[0].id
        if named in names:
            exec(compile(ast.Module([node], []), str(path), "exec"), defined)  # noqa: S102
    return defined


REFERENCES = (1, 15, 30)
FRAMES = 15


def strategies() -> list[str]:
    """Random mask strategies, most of them of one or two groups, many of which upstream refuses."""
    draw = random.Random(5)
    made = []
    for _ in range(STRATEGIES):
        groups = []
        for _ in range(draw.choice([1, 1, 2, 3])):
            fields = [
                draw.choice([0, 0, 0, 0, 1]),
                draw.choice([0, 1, 2, 2]),
                draw.choice([0, 0, -1, draw.randrange(-16, 31)]),
                draw.choice([0, -1, draw.randrange(-15, 15)]),
                draw.choice([1, 5, draw.randrange(1, 16)]),
                draw.choice([0, 0.4, 1, 0.25]),
            ]
            groups.append(",".join(str(field) for field in fields[: draw.choice([1, 2, 4, 5, 6, 6])]))
        made.append(";".join(groups))
    return made


def masks(repository: str) -> dict[str, Tensor]:
    """For each strategy and rule: the source of each target frame (1000 reference + frame; -1 none), its mask value,
    and whether upstream raised an error."""
    names = (
        "apply_mask_strategy",
        "parse_mask_strategy",
        "find_nearest_point",
        "MASK_DEFAULT",
        "process_mask_strategy",
    )
    with upstream(repository, "1.2") as root:
        newer = functions(root / "opensora" / "utils" / "inference_utils.py", *names)["apply_mask_strategy"]
    with upstream(repository, "1.1") as root:
        older = functions(root / "scripts" / "inference-long.py", *names)["apply_mask_strategy"]
    references = [torch.arange(t).float()[None, :, None, None] + 1000 * n for n, t in enumerate(REFERENCES)]
    rules = {
        "1.2": lambda z, text: newer(z, [references], [text], 0),
        "1.2-aligned": lambda z, text: newer(z, [references], [text], 0, align=5),
        "1.1": lambda z, text: older(z, [references], [text], 0),
    }
    found: dict[str, Tensor] = {}
    for name, rule in rules.items():
        sources, values, failed = [], [], []
        for text in strategies():
            z, mask, error = torch.full((1, 1, FRAMES, 1, 1), -1.0), torch.ones(1, FRAMES), False
            try:
                mask = rule(z, text)
            except (RuntimeError, IndexError):
                error = True
            sources.append(z.flatten().short())
            values.append(mask[0])
            failed.append(error)
        found[f"{name}.source"], found[f"{name}.mask"] = torch.stack(sources), torch.stack(values)
        found[f"{name}.failed"] = torch.tensor(failed)
    return found


def sizes(repository: str) -> tuple[dict[str, Tensor], list[str]]:
    """(height, width) of each resolution and ratio, or key of 1.3; zeros where upstream refuses."""
    found, names = {}, []
    for version in ("1.2", "1.3"):
        with upstream(repository, version) as root:
            sys.modules["opensora.datasets"].__path__ = [str(root / "opensora" / "datasets")]
            module = importlib.import_module("opensora.datasets.aspect")
            keys = sorted({key for _, table in module.ASPECT_RATIOS.values() for key in table})
            ratios = [*module.ASPECT_RATIO_MAP, *(keys if version == "1.3" else [])]
            names.append([f"{resolution}:{ratio}" for resolution in module.ASPECT_RATIOS for ratio in ratios])
            rows = []
            for name in names[-1]:
                try:
                    rows.append(module.get_image_size(*name.split(":", 1)))
                except (AssertionError, KeyError):
                    rows.append((0, 0))
            found[version] = torch.tensor(rows).short()
    return found, names


def cleaned(repository: str) -> list[str]:
    with upstream(repository, "1.2"):
        package("transformers", AutoTokenizer=None, T5EncoderModel=None)
        module = importlib.import_module("opensora.models.text_encoder.t5")
        return [module.text_preprocessing(caption) for caption in CAPTIONS]


def save(name: str, tensors: dict[str, Tensor], commit: str, **told: Any) -> None:
    metadata = {
        "commit": commit,
        "script": Path(__file__).name,
        **{key: json.dumps(each) for key, each in told.items()},
    }
    tensors = {key: each.contiguous() for key, each in tensors.items()}
    save_file(tensors, HERE / f"samplers-{name}.safetensors", metadata=metadata)


def main(repository: str) -> None:
    torch.set_grad_enabled(False)
    HERE.mkdir(exist_ok=True)
    for version in ("1.0", "1.1"):
        save(version, iddpm(repository, version), COMMITS[version])
    save("1.2", rflow_1_2(repository), COMMITS["1.2"])
    save("1.3", rflow_1_3(repository), COMMITS["1.3"])
    save("masks", masks(repository), f"{COMMITS['1.1']} {COMMITS['1.2']}", strategies=strategies())
    tables, names = sizes(repository)
    save("sizes", tables, f"{COMMITS['1.2']} {COMMITS['1.3']}", names=names)
    save("text", {"count": torch.tensor(len(CAPTIONS))}, COMMITS["1.2"], captions=CAPTIONS, cleaned=cleaned(repository))


if __name__ == "__main__":
    main(*sys.argv[1:])
