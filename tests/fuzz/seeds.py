"""Small valid files of every kind that kinema reads, and their readers.

A `Seed` is the text or the bytes that are damaged, ``wrap`` what makes a file of the text (a header with its length, a
chunk with its checksum), so that damage reaches the parser behind them; ``read`` is what a user would do with it.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Seed:
    """``name`` is the file's; ``beside`` are whole files that lie with it; ``read`` takes the folder."""

    name: str
    content: bytes
    read: Callable[[Path], Any]
    wrap: Callable[[bytes], bytes] | None = None
    beside: dict[str, bytes] = field(default_factory=dict)

    def file(self, content: bytes) -> bytes:
        return self.wrap(content) if self.wrap else content


# ----------------------------------------------------------------------------------- what is made


def frames(count: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    made = np.full((count, height, width, 3), 60, np.uint8)
    for t in range(count):
        made[t, 8:20, 4 + 5 * t : 16 + 5 * t] = (220, 200, 40)
    return made


def video(container: str, codec: str, pixels: str = "yuv420p", *, sound: bool = False) -> bytes:
    import av

    raw = io.BytesIO()
    with av.open(raw, "w", format=container) as out:
        stream = out.add_stream(codec, rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        heard = out.add_stream("aac", rate=8000) if sound else None
        for t, picture in enumerate(frames()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = t, Fraction(1, 8)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if heard is not None:
            part = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 8000, 0, Fraction(1, 8000)
            out.mux(heard.encode(part))
            out.mux(heard.encode())
    return raw.getvalue()


def picture(kind: str, *, moving: bool = False, **options: Any) -> bytes:
    from PIL import Image

    raw = io.BytesIO()
    first, *rest = [Image.fromarray(f) for f in frames(4 if moving else 1)]
    more = {"save_all": True, "append_images": rest, "duration": 120, "loop": 0} if moving else {}
    first.save(raw, kind, **more, **options)
    return raw.getvalue()


def rotated(kind: str) -> bytes:
    """An image with an Exif rotation and a colour profile."""
    from PIL import Image, ImageCms

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a red ball"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return picture(kind, exif=exif.tobytes(), icc_profile=profile)


def deep_apng() -> bytes:
    """An animated 16-bit grey png, assembled by hand because Pillow cannot write one."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    made = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 32, 16, 0, 0, 0, 0))
    made += chunk(b"acTL", struct.pack(">II", 3, 0))
    for t, picture in enumerate(frames(3)):
        rows = b"".join(b"\0" + row.tobytes() for row in (picture[..., 0].astype(">u2") * 257).astype(">u2"))
        number = max(0, 2 * t - 1)
        made += chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 48, 32, 0, 0, 120, 1000, 0, 0))
        packed = zlib.compress(rows)
        made += chunk(b"fdAT", struct.pack(">I", number + 1) + packed) if t else chunk(b"IDAT", packed)
    return made + chunk(b"IEND", b"")


def held_mkv() -> bytes:
    """An mkv with block durations."""
    import av

    raw = io.BytesIO()
    with av.open(raw, "w", format="matroska") as out:
        stream = out.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        made = [stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24")) for f in frames()]
        for packet in [packet for some in (*made, stream.encode(None)) for packet in some]:
            packet.duration = round(Fraction(1, 10) / packet.time_base)
            out.mux(packet)
    return raw.getvalue()


def chunked(text: bytes) -> bytes:
    """A png with a recipe."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    whole = picture("PNG")
    return whole[:33] + chunk(b"iTXt", b"kinema\0\0\0\0\0" + text) + whole[33:]


def with_header(body: bytes) -> Callable[[bytes], bytes]:
    """A safetensors file with a header that may be damaged; the stated length matches."""
    return lambda text: struct.pack("<Q", len(text)) + text + body


def parted(whole: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack("<Q", whole[:8])[0]
    return whole[8 : 8 + length], whole[8 + length :]


@cache
def tiny_model() -> bytes:
    """A native, untrained model file."""
    import torch

    from kinema import registry
    from kinema.training import checkpoint

    family = registry.family("vdm")
    config = family.presets["tiny"]
    torch.manual_seed(0)
    tensors = dict(family.build(config).state_dict())
    return written(lambda path: checkpoint.export(path, tensors, {}, note_of(family, config)))


def note_of(family: Any, config: Any) -> str:
    return json.dumps({"family": family.name, "config": family.to_json(config)})


@cache
def tiny_lora() -> bytes:
    import torch
    from safetensors.torch import save

    from kinema import registry

    family = registry.family("animatediff")
    shapes = {n: p.shape for n, p in family.build(family.presets["tiny"]).named_parameters()}
    name, shape = next((n, s) for n, s in shapes.items() if n.endswith("to_q.weight") and len(s) == 2)
    layer = name.removesuffix(".weight")
    return save({f"{layer}.lora_A.weight": torch.ones(2, shape[1]), f"{layer}.lora_B.weight": torch.ones(shape[0], 2)})


def written(write: Callable[[Path], Any]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.safetensors"
        write(path)
        return path.read_bytes()


@cache
def pickled() -> bytes:
    import torch

    raw = io.BytesIO()
    torch.save({"state_dict": {"a.weight": torch.ones(4, 4), "a.bias": torch.zeros(4)}, "epoch": 3}, raw)
    return raw.getvalue()


@cache
def quantised() -> bytes:
    """A GGUF file with settings of each kind, a plain tensor and a quantised one."""
    import gguf

    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(str(path), "sd1")
        writer.add_array("comfy.gguf.orig_shape.a.weight", [2, 32])
        writer.add_uint32("general.file_type", 7)
        values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor("a.weight", gguf.quantize(values, kind), raw_dtype=kind)
        writer.add_tensor("a.bias", values[0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return written(write)


@cache
def embedding() -> bytes:
    """An embedding of the first textual inversions, with a ``ParameterDict``."""
    import torch

    raw, table = io.BytesIO(), torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 8))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": table}, raw)
    return raw.getvalue()


@cache
def old_pickle() -> bytes:
    import torch

    raw = io.BytesIO()
    torch.save({"a.weight": torch.ones(4, 4)}, raw, _use_new_zipfile_serialization=False)
    return raw.getvalue()


@cache
def run() -> dict[str, bytes]:
    """The folder of a training run of two steps."""
    import tempfile

    from kinema.training.options import TrainOptions
    from kinema.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        run = {"model": "vdm/tiny", "data": "playroom", "out": f"{folder}/run", "steps": 2, "batch": 1, "threads": 1}
        train(TrainOptions(**run), lambda _event: None)
        return {p.name: p.read_bytes() for p in Path(folder, "run").iterdir() if p.is_file() and p.name != ".lock"}


# ------------------------------------------------------------------------------------- the readers


def command(*words: str) -> Callable[[Path], int]:
    """A command line in the folder; its own exit code and sentence count."""

    def read(folder: Path) -> int:  # noqa: ARG001 (the child stands in the folder)
        from kinema.cli.main import main

        return main(list(words))

    return read


def whole_clip(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from kinema.media.read import probe, read_video

        probe(folder / name)
        read_video(folder / name)

    return read


def whole_picture(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from kinema.media.read import read_image

        read_image(folder / name)

    return read


def data_set(folder: Path) -> None:
    from kinema.data.folder import Folder

    found = Folder.scan(folder, frames=4, height=16, width=16)
    train, held_out = found.split(0.9)
    train.clip(0), held_out.clip(1)


def encoded(folder: Path) -> None:
    from kinema.data.shards import Latents

    Latents.open(folder).clip(0)


def weights(name: str) -> Callable[[Path], Any]:
    """Open a model and load its weights."""

    def read(folder: Path) -> None:
        from kinema.system import open_system

        open_system(folder / name).filled()

    return read


def lora(folder: Path) -> None:
    import kinema

    kinema.load("animatediff/tiny", loras={folder / "lora.safetensors": 1.0})


def tensors(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from kinema.checkpoints import files

        files.header(folder / name)
        files.read_tensors(folder / name)

    return read


def embedded(folder: Path) -> None:
    from kinema.conditioning.prompts import embeddings

    embeddings.vectors(str(folder / "x.pt"), [8], 75)


def resumed(folder: Path) -> None:
    from kinema.training.options import TrainOptions
    from kinema.training.run import train

    options = {"model": "vdm/tiny", "data": "playroom", "out": str(folder), "steps": 2, "batch": 1, "threads": 1}
    train(TrainOptions(**options), lambda _event: None)


def vocabulary(folder: Path) -> None:
    from kinema.conditioning.clip_text import ClipTokenizer

    ClipTokenizer(folder).tokens("a red ball")


# --------------------------------------------------------------------------------------- the seeds

RECIPE = {
    "kinema": "0.1.0",
    "model": "zoetrope",
    "family": "zoetrope",
    "request": {"task": "generate", "prompt": "a red ball rolls right", "seed": 1, "frames": 2, "steps": 1,
                "height": 64, "width": 64, "fps": 8.0, "guidance": 3.0, "region": None},
    "inputs": {}, "device": "cpu", "dtype": "float32", "threads": 1, "overrides": {},
    "versions": {"torch": "2.13.0"}, "weights": "sha256:00", "frames_hash": "00",
}  # fmt: skip
CONFIG = {
    "yaml": "prompt: a red ball\nsteps: 2\nguidance_interval: [-2, 2]\nextra: {per-frame: true}\nseed: 7\n",
    "merge.yaml": "<<: [{steps: 2}, {steps: 3, seed: 1}]\nprompt: a red ball\nextra: {<<: {per-frame: true}}\n",
    "toml": 'prompt = "a red ball"\nsteps = 2\nguidance-interval = [-2.0, 2.0]\nseed = 7\n[extra]\nper-frame = true\n',
    "json": '{"prompt": "a red ball", "steps": 2, "seed": 7, "extra": {"per-frame": true}}',
}
LISTS = {
    "metadata.jsonl": '{"file_name": "a.mp4", "text": "a red ball"}\n{"file_name": "b.mp4", "text": ["one", "two"]}\n',
    "metadata.csv": 'file_name,text\na.mp4,a red ball\nb.mp4,"one, two"\n',
    "metadata.json": '[{"file_name": "a.mp4", "caption": "a red ball"}, {"file_name": "b.mp4", "caption": "two"}]',
    "a.txt": "a red ball rolls right",
    "motion.json": '{"clips": {"a.mp4": {"bytes": 5, "fps": 8.0, "motion": 0.1, "bucket": 127}}}',
}


def clips() -> dict[str, Seed]:
    made = {
        "mp4": video("mp4", "libx264"),
        "sound.mp4": video("mp4", "libx264", sound=True),
        "mov": video("mov", "libx264"),
        "mkv": video("matroska", "libx264"),
        "webm": video("webm", "libvpx-vp9"),
        "avi": video("avi", "mpeg4"),
        "gif": picture("GIF", moving=True),
        "webp": picture("WEBP", moving=True),
        "apng.png": picture("PNG", moving=True),
        "deep.png": deep_apng(),
        "held.mkv": held_mkv(),
    }
    seeds = {f"clip {kind}": Seed(f"a.{kind}", data, whole_clip(f"a.{kind}")) for kind, data in made.items()}
    return seeds | {
        f"inspect {kind}": Seed(f"a.{kind}", data, command("inspect", f"a.{kind}")) for kind, data in made.items()
    }


def pictures() -> dict[str, Seed]:
    from PIL import features

    made = {kind: picture(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")}
    made |= {
        f"TIFF {packed}": picture("TIFF", compression=packed) for packed in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")
    }
    made |= {f"{kind} told": rotated(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF")}
    if features.check("avif"):
        made |= {"AVIF": picture("AVIF"), "AVIF moving": picture("AVIF", moving=True)}
    return {f"picture {kind}": Seed("a.img", data, whole_picture("a.img")) for kind, data in made.items()}


def texts() -> dict[str, Seed]:
    both = {"a.mp4": video("mp4", "libx264"), "b.mp4": video("mp4", "libx264")}
    plan = ("plan", "--no-measure", "--config")
    made = {f"config {kind}": Seed(f"c.{kind}", t.encode(), command(*plan, f"c.{kind}")) for kind, t in CONFIG.items()}
    made |= {f"list {name}": Seed(name, t.encode(), data_set, beside=both) for name, t in LISTS.items()}
    text = json.dumps(RECIPE).encode()
    made["recipe"] = Seed("r.png", text, command("inspect", "r.png"), chunked)
    made["replay"] = Seed("r.png", text, command("replay", "r.png", "--quiet"), chunked)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    single = [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    names = [*single, *(f"{letter}</w>" for letter in single), "ab", "<|startoftext|>", "<|endoftext|>"]
    letters = {name: i for i, name in enumerate(names)}
    merges = b"#version: 0.2\na b\n"
    vocab = json.dumps(letters).encode()
    made["vocab.json"] = Seed("vocab.json", vocab, vocabulary, beside={"merges.txt": merges})
    made["merges.txt"] = Seed("merges.txt", merges, vocabulary, beside={"vocab.json": vocab})
    return made


@cache
def pipeline() -> dict[str, bytes]:
    """A folder in diffusers' layout with a tiny untrained model."""
    import tempfile

    from kinema.checkpoints.convert import convert
    from kinema.system import open_system
    from kinema.training.checkpoint import export

    with tempfile.TemporaryDirectory() as folder:
        system, source, made = open_system("svd/tiny"), Path(folder, "svd.safetensors"), Path(folder, "svd")
        export(source, system.filled().state_dict(), {}, note_of(system.family, system.config))
        convert(str(source), made, "diffusers")
        return {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()}


def folders() -> dict[str, Seed]:
    whole, inspect = pipeline(), command("inspect", ".")
    return {
        f"folder {name}": Seed(name, whole[name], inspect, beside={n: d for n, d in whole.items() if n != name})
        for name in whole
        if name.endswith(".json")
    }


def models() -> dict[str, Seed]:
    text, body = parted(tiny_model())
    lora_text, lora_body = parted(tiny_lora())
    ran = run()
    step = max(name for name in ran if name.startswith("step-"))
    state, state_body = parted(ran[step])
    others = {name: data for name, data in ran.items() if name != step and not name.startswith("step-")}
    options = {name: data for name, data in ran.items() if name != "options.json"}
    return {
        "model header": Seed("m.safetensors", text, weights("m.safetensors"), with_header(body)),
        "model bytes": Seed("m.safetensors", tiny_model(), weights("m.safetensors")),
        "inspect model": Seed("m.safetensors", text, command("inspect", "m.safetensors"), with_header(body)),
        "lora header": Seed("lora.safetensors", lora_text, lora, with_header(lora_body)),
        "pickle": Seed("m.pt", pickled(), tensors("m.pt")),
        "old pickle": Seed("m.ckpt", old_pickle(), tensors("m.ckpt")),
        "gguf": Seed("m.gguf", quantised(), tensors("m.gguf")),
        "embedding": Seed("x.pt", embedding(), embedded),
        "run state": Seed(step, state, resumed, with_header(state_body), beside=others),
        "run options": Seed("options.json", ran["options.json"], resumed, beside=options),
    }


@cache
def seeds() -> dict[str, Seed]:
    return clips() | pictures() | texts() | folders() | models()
