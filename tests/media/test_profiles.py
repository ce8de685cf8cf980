"""ICC profiles, built from the ICC specification, in every mode that supports them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kinema.media.read import read_image, read_video

P3 = (220, 40, 30)
IN_SRGB = (241, 0, 0)


def profile(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"cprt": b"text\0\0\0\0none\0",
        **tags,
    }
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    white = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(">I4sI", start + len(body), bytes(4), 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def display_p3() -> bytes:
    columns = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(2.2))
    return profile(b"RGB ", b"mntr", b"XYZ ", {name: xyz(*values) for name, values in columns.items()} | curves)


def grey_of_gamma(gamma: float) -> bytes:
    return profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": curve(gamma)})


def inks_without_hue() -> bytes:
    """A printer profile whose cyan, magenta and yellow are the same grey, a third of black."""
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1)
    lightness = (255 * (1 - corners[3]) * (1 - corners[:3].mean(0))).round().astype(np.uint8)
    lab = np.stack([lightness, np.full(16, 128), np.full(16, 128)], -1).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(np.eye(3).reshape(-1) * 65536).astype(int))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab + ramp * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})


def flat(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (32, 24), colour)


def paletted(*, transparent: bool) -> Image.Image:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *P3, 10, 200, 10])
    image.info.update({"transparency": 2} if transparent else {})
    return image


def middle(path: Path) -> list[int]:
    return read_image(path)[0, :, 0, 12, 16].add(1).mul(127.5).round().int().tolist()


MODES: dict[str, Callable[[], Image.Image]] = {
    "RGB": lambda: flat("RGB", P3),
    "RGBA": lambda: flat("RGBA", (*P3, 255)),
    "palette": lambda: paletted(transparent=False),
    "palette with a transparent colour": lambda: paletted(transparent=True),
}


@pytest.mark.parametrize("mode", MODES)
def test_display_p3_is_the_same_colour_in_every_mode(tmp_path: Path, mode: str) -> None:
    MODES[mode]().save(tmp_path / "a.png", icc_profile=display_p3())
    assert np.abs(np.subtract(middle(tmp_path / "a.png"), IN_SRGB)).max() <= 2


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("a.webp", "RGBA"), ("a.tif", "RGB"), ("a.tif", "RGBA")])
def test_display_p3_is_the_same_colour_in_every_format(tmp_path: Path, name: str, mode: str) -> None:
    options = {"lossless": True} if name == "a.webp" else {"quality": 100, "subsampling": 0} if name == "a.jpg" else {}
    MODES[mode]().save(tmp_path / name, icc_profile=display_p3(), **options)
    assert np.abs(np.subtract(middle(tmp_path / name), IN_SRGB)).max() <= 3


def test_alpha_is_applied_after_conversion_to_srgb(tmp_path: Path) -> None:
    flat("RGBA", (*P3, 128)).save(tmp_path / "a.png", icc_profile=display_p3())
    assert np.abs(np.subtract(middle(tmp_path / "a.png"), [121, 0, 0])).max() <= 2


def test_frames_of_an_animated_webp_follow_its_profile(tmp_path: Path) -> None:
    frames = [flat("RGBA", (*P3, 255)), flat("RGBA", (*P3, 254))]
    frames[0].save(
        tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True, icc_profile=display_p3()
    )
    video = read_video(tmp_path / "a.webp").video
    assert video.shape[2] == 2
    assert np.abs(video[0, :, :, 12, 16].add(1).mul(127.5).T.numpy() - IN_SRGB).max() <= 2


def motion(path: Path, codec: str, pix_fmt: str, image: bytes) -> Path:
    """A clip whose single frame is a complete image file, as cameras and screen recorders write."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=8, width=32, height=24, pix_fmt=pix_fmt)
        packet = av.Packet(image)
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 8)
        out.mux(packet)
    return path


def test_images_in_a_video_follow_their_profile(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    MODES["RGB"]().save(buffer, "JPEG", icc_profile=display_p3(), quality=100, subsampling=0)
    path = motion(tmp_path / "a.mov", "mjpeg", "yuvj444p", buffer.getvalue())
    srgb = read_video(path).video[0, :, 0, 12, 16].add(1).mul(127.5).numpy()
    assert np.abs(srgb - IN_SRGB).max() <= 3


def test_a_png_frame_with_a_named_profile_does_not_crash(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    MODES["RGB"]().save(buffer, "PNG", icc_profile=display_p3())
    path = motion(tmp_path / "a.mov", "png", "rgb24", buffer.getvalue())
    code = f"import gc; from kinema.media.read import read_video; read_video({str(path)!r}); gc.collect()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_frames_of_a_folder_follow_their_profiles(tmp_path: Path) -> None:
    flat("RGBA", (*P3, 255)).save(tmp_path / "1.png", icc_profile=display_p3())
    srgb = read_video(tmp_path).video[0, :, 0, 12, 16].add(1).mul(127.5).numpy()
    assert np.abs(srgb - IN_SRGB).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_follows_a_grey_profile(tmp_path: Path, mode: str) -> None:
    flat(mode, 128 if mode == "L" else (128, 255)).save(tmp_path / "a.png", icc_profile=grey_of_gamma(1.0))
    assert np.abs(np.subtract(middle(tmp_path / "a.png"), [188, 188, 188])).max() <= 2


def test_16_bit_grey_follows_its_profile_at_full_depth(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16)[None].repeat(2, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=grey_of_gamma(1.0))
    srgb = read_image(tmp_path / "a.png")[0, 0, 0, 0].add(1).div(2).numpy()
    light = ramp[0] / 65535
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(srgb - expected)[16:].max() <= 4 / 255  # one of the 256 steps at which the profile is sampled
    assert len(np.unique(srgb)) > 2500


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_follows_its_profile(tmp_path: Path, name: str) -> None:
    flat("CMYK", (255, 0, 0, 0)).save(tmp_path / name, icc_profile=inks_without_hue())
    assert np.abs(np.subtract(middle(tmp_path / name), [162, 162, 162])).max() <= 3


def test_cie_lab_is_converted(tmp_path: Path) -> None:
    from PIL import ImageCms

    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(flat("RGB", (200, 90, 40)), to_lab).save(tmp_path / "a.tif")  # type: ignore[union-attr]
    assert np.abs(np.subtract(middle(tmp_path / "a.tif"), [200, 90, 40])).max() <= 3


@pytest.mark.parametrize(
    "broken",
    [b"", b"none", b"\0" * 200, display_p3()[:200], display_p3()[:-40], grey_of_gamma(1.0), inks_without_hue()],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_or_mismatched_profile_is_ignored(tmp_path: Path, mode: str, broken: bytes) -> None:
    MODES[mode]().save(tmp_path / "a.png", icc_profile=broken)
    srgb = np.array(middle(tmp_path / "a.png"))
    assert min(np.abs(srgb - P3).max(), np.abs(srgb - IN_SRGB).max()) <= 2


@pytest.mark.parametrize(("mode", "colour"), [("L", 128), ("LA", (128, 255))])
def test_an_rgb_profile_on_grey_is_ignored(tmp_path: Path, mode: str, colour: Any) -> None:
    flat(mode, colour).save(tmp_path / "a.png", icc_profile=display_p3())
    assert middle(tmp_path / "a.png") == [128, 128, 128]


def associated_tiff(samples: bytes) -> bytes:
    """A TIFF of 8×8 equal pixels whose last sample is premultiplied alpha."""
    count = len(samples)
    bits = struct.pack("<4H", 8, 8, 8, 8)
    entries = [
        (256, 4, 1, struct.pack("<I", 8)),
        (257, 4, 1, struct.pack("<I", 8)),
        (258, 3, count, bits[:4] if count == 2 else struct.pack("<I", 200)),
        (259, 3, 1, struct.pack("<I", 1)),
        (262, 3, 1, struct.pack("<I", 1 if count == 2 else 2)),
        (273, 4, 1, struct.pack("<I", 256)),
        (277, 3, 1, struct.pack("<I", count)),
        (278, 4, 1, struct.pack("<I", 8)),
        (279, 4, 1, struct.pack("<I", 64 * count)),
        (338, 3, 1, struct.pack("<I", 1)),
    ]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries) + bytes(4)
    return ((b"II*\0\x08\0\0\0" + table).ljust(200, b"\0") + bits).ljust(256, b"\0") + samples * 64


@pytest.mark.parametrize("samples", [[60, 128], [60, 30, 10, 128]])
def test_premultiplied_alpha_is_applied_only_once(tmp_path: Path, samples: list[int]) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(associated_tiff(bytes(samples)))
    srgb = read_image(path)[0, :, 0, 4, 4].add(1).mul(127.5).round().int().tolist()
    expected = (samples[:-1] * 3)[:3]
    assert np.abs(np.subtract(srgb, expected)).max() <= 1


def test_png_gamma_applies_without_a_better_description(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    def saved(name: str, gamma: int, *chunks: tuple[bytes, bytes], **more: Any) -> list[int]:
        info = PngInfo()
        for chunk, data in (*chunks, (b"gAMA", struct.pack(">I", gamma))):
            info.add(chunk, data)
        flat("RGB", (128, 0, 255)).save(tmp_path / name, pnginfo=info, **more)
        return middle(tmp_path / name)

    assert saved("linear.png", 100_000) == [188, 0, 255]
    assert saved("usual.png", 45_455) == [128, 0, 255]
    assert saved("srgb.png", 100_000, (b"sRGB", b"\0")) == [128, 0, 255]
    assert saved("mad.png", 4_000_000_000) == [128, 0, 255]
