"""User errors on the command line: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

import kinema
from kinema.cli.main import main
from kinema.schema import Clip

SOURCE = Path(kinema.__file__).parents[1]
TINY = ("--model", "zoetrope/tiny", "--steps", "2", "--quiet")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *words: str) -> str:
    """Run a command that must be refused and return its one-line error message."""
    before = sorted(Path().rglob("*"))
    code = main(list(words))
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("kinema: ")
    assert sorted(Path().rglob("*")) == before
    return lines[0]


def huge_png(path: Path, side: int) -> None:
    """A png of a few hundred bytes whose header claims side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt, capsys):
    assert "prompt" in refused(capsys, "generate", prompt, *TINY)


def test_a_missing_prompt_is_refused(capsys):
    assert "prompt" in refused(capsys, "generate", *TINY)


@pytest.mark.parametrize("name", ["zoetrop", "zeotrope"])
def test_an_unknown_model_gets_the_nearest_name(name, capsys):
    message = refused(capsys, "generate", "a ball", "--model", name)
    assert repr(name) in message
    assert "did you mean zoetrope" in message


def test_an_unknown_preset_gets_the_nearest_name(capsys):
    assert "tiny" in refused(capsys, "generate", "a ball", "--model", "zoetrope/tinny")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--frames", "0"), ("frames", "0", "1")),
        (("--frames", "1000000000"), ("frames", "4,096")),
        (("--frames", "-3"), ("frames", "-3")),
        (("--height", "0"), ("height",)),
        (("--width", "99999999"), ("width", "8,192")),
        (("--frames", "4096", "--height", "8192", "--width", "8192"), ("pixels",)),
        (("--fps", "0"), ("fps",)),
        (("--fps", "nan"), ("fps", "nan")),
        (("--steps", "0"), ("steps",)),
        (("--seed", "-1"), ("seed",)),
        (("--guidance", "inf"), ("guidance",)),
        (("--clips", "0"), ("clips",)),
        (("--zoom", "0"), ("zoom",)),
        (("--zoom", "1000"), ("zoom",)),
        (("--threads", "0"), ("threads",)),
        (("--sampler", "dimm"), ("did you mean", "ddim")),
        (("--device", "quantum"), ("quantum", "cpu")),
        (("--dtype", "fp8"), ("fp32",)),
        (("--extra", "motion-bucket=127"), ("motion", "bucket")),
        (("--framez", "3"), ("--frames",)),
        (("--frames", "many"), ("whole number",)),
    ],
)
def test_an_option_out_of_range_is_refused(words, parts, capsys):
    message = refused(capsys, "generate", "a ball", *TINY, *words)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("animate", "nowhere.png", "a ball"), "nowhere.png"),
        (("animate",), "image"),
        (("inpaint", "nowhere.mp4", "a ball", "--region", "0,0,1,.5"), "nowhere.mp4"),
        (("extend", "nowhere.mp4"), "nowhere.mp4"),
        (("interpolate", "nowhere.mp4"), "nowhere.mp4"),
        (("interpolate",), "video"),
        (("edit", "nowhere.mp4", "a ball"), "nowhere.mp4"),
        (("replay", "nowhere.mp4"), "nowhere.mp4"),
        (("inspect", "nowhere.mp4"), "nowhere.mp4"),
        (("replay",), "needs a clip"),
        (("inspect",), "needs a file"),
        (("generate", "a ball", "--model", "./nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_a_missing_file_is_refused_by_name(words, part, capsys):
    words = words if "--model" in words or words[0] == "inspect" else (*words, "--model", "zoetrope/tiny")
    assert part in refused(capsys, *words)


@pytest.fixture
def closed(monkeypatch):
    """Files named ``closed.*`` cannot be opened, as after ``chmod 000`` (which does not stop root)."""
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path.stem == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


UNREADABLE = [
    ("animate", "{}.png", "a ball"),
    ("extend", "{}.mp4"),
    ("edit", "{}.mp4", "a ball"),
    ("replay", "{}.mp4"),
    ("inspect", "{}.safetensors"),
    ("generate", "a ball", "-m", "./{}.safetensors"),
]


@pytest.mark.parametrize("words", UNREADABLE)
def test_an_unreadable_file_is_refused(words, capsys, closed):
    for suffix in ("png", "mp4", "safetensors"):
        Path(f"closed.{suffix}").touch()
        os.truncate(f"closed.{suffix}", 9)
    words = [word.format("closed") for word in words]
    message = refused(capsys, *words, *(() if words[0] in ("replay", "inspect") or "-m" in words else TINY))
    assert "closed." in message
    assert "Permission denied" in message


@pytest.mark.parametrize("words", [*UNREADABLE, ("generate", "a ball", *TINY, "-o", "{}.mp4")])
def test_a_file_name_that_is_too_long_is_refused(words, capsys):
    words = [word.format("x" * 300) for word in words]
    bare = words[0] in ("replay", "inspect") or "-m" in words or "-o" in words
    assert "too long" in refused(capsys, *words, *(() if bare else TINY))


def test_a_batch_with_too_long_file_names_is_refused(capsys):
    assert "too long" in refused(capsys, "generate", "a ball", *TINY, "--clips", "2", "-o", "x" * 251 + ".mp4")


@pytest.mark.parametrize("task", ["animate", "extend", "replay"])
def test_a_folder_in_place_of_a_file_is_refused(task, capsys):
    Path("folder").mkdir()
    assert "folder" in refused(capsys, task, "folder", *(() if task == "replay" else TINY))


def test_an_output_that_is_a_folder_or_blocks_one_is_refused(capsys):
    Path("ball.mp4").mkdir()
    assert "is a folder" in refused(capsys, "generate", "a ball", *TINY, "-o", "ball.mp4", "--overwrite")
    Path("frames").write_text("mine")
    assert "is a file" in refused(capsys, "generate", "a ball", *TINY, "-o", "frames", "--overwrite")
    assert Path("frames").read_text() == "mine"


@pytest.mark.parametrize("keep", [0.5, 0.02, 0])
@pytest.mark.parametrize("task", ["extend", "edit"])
def test_a_truncated_mp4_is_refused(task, keep, capsys):
    torch.manual_seed(0)
    Clip(torch.rand(1, 3, 8, 32, 32) * 2 - 1, 8.0).save("whole.mp4")
    data = Path("whole.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: int(len(data) * keep)])
    assert "cut.mp4" in refused(capsys, task, "cut.mp4", "a ball", *TINY)


def test_an_image_of_30000_by_30000_is_refused(capsys):
    huge_png(Path("huge.png"), 30_000)
    message = refused(capsys, "animate", "huge.png", "a ball", *TINY)
    assert "huge.png" in message
    assert "pixels" in message


def test_a_text_file_named_png_is_refused(capsys):
    Path("words.png").write_text("not an image")
    assert "words.png" in refused(capsys, "animate", "words.png", "a ball", *TINY)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("name", ["evil.pt", "evil.ckpt", "evil.safetensors", "evil.bin"])
def test_a_pickle_with_code_is_refused_and_not_run(name, capsys):
    Path(name).write_bytes(pickle.dumps({"weight": Evil()}))
    assert name in refused(capsys, "generate", "a ball", "--model", f"./{name}")
    assert name in refused(capsys, "inspect", name)


def test_a_torch_archive_with_code_is_refused_and_not_run(capsys):
    torch.save({"weight": Evil()}, "evil.pt")
    assert "evil.pt" in refused(capsys, "generate", "a ball", "--model", "./evil.pt")


def test_a_missing_output_folder_is_refused(capsys):
    assert "nowhere" in refused(capsys, "generate", "a ball", *TINY, "-o", "nowhere/ball.mp4")


def test_a_read_only_output_folder_is_refused(capsys):
    folder = Path("/proc") if os.geteuid() == 0 and Path("/proc").is_dir() else Path("closed")
    if folder.name == "closed":
        folder.mkdir(mode=0o500)
    assert str(folder) in refused(capsys, "generate", "a ball", *TINY, "-o", str(folder / "ball.mp4"))


def test_an_unknown_output_format_is_refused(capsys):
    assert ".mp4" in refused(capsys, "generate", "a ball", *TINY, "-o", "ball.avi")


def test_an_existing_output_is_refused(capsys):
    Path("ball.mp4").write_text("mine")
    assert "--overwrite" in refused(capsys, "generate", "a ball", *TINY, "-o", "ball.mp4")
    assert Path("ball.mp4").read_text() == "mine"


def test_a_clip_without_a_recipe_cannot_be_replayed(capsys):
    Clip(torch.zeros(1, 3, 2, 16, 16)).save("plain.mp4")
    assert "plain.mp4" in refused(capsys, "replay", "plain.mp4")


def test_a_replay_with_other_weights_needs_the_model_option(capsys, monkeypatch):
    assert main(["generate", "a ball", *TINY, "-o", "ball.mp4"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("kinema.system.Weights.hash", property(lambda _self: "f" * 64))
    assert "pass --model" in refused(capsys, "replay", "ball.mp4")
    assert main(["replay", "ball.mp4", "--model", "zoetrope/tiny", "-o", "again.mp4"]) == 0
    assert "are not those of the clip" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".mp4", ".webp"])
def test_a_full_disk_is_one_line_and_leaves_no_file(suffix, capsys):
    """Files are limited to 600 bytes: the write fails part-way, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        message = refused(capsys, "generate", "a ball", *TINY, "-o", f"ball{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ball" in message
    assert not list(Path().iterdir())


def start(*words: str, threads: int) -> subprocess.Popen:
    # Background jobs of a shell inherit an ignored SIGINT.
    return subprocess.Popen(
        [sys.executable, "-m", "kinema.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize(
    ("number", "code", "threads"), [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 2)]
)
def test_interrupting_exits_130_and_leaves_no_file(number, code, threads):
    """With two threads the guidance branches run concurrently: exiting while one computes would abort the process."""
    words = ("generate", "a ball", "--model", "zoetrope/tiny", "--steps", "10000", "--json-events")
    process = start(*words, threads=threads)
    for line in process.stdout:
        if '"step"' in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "terminate" not in err
    assert not list(Path().iterdir())
