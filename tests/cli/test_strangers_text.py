"""Untrusted text: in config files, and printed from files."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from kinema.cli import main as cli
from kinema.cli.convert import OPTIONS as CONVERT
from kinema.cli.models import FILE, _lines, _write
from kinema.cli.options import parse
from kinema.cli.progress import JsonLines, Lines
from kinema.cli.verbs import CONFIG, MODEL, WRITING, request_options
from kinema.events import Note
from kinema.options import Option
from kinema.registry import unknown_name
from kinema.schema import BadRequest

OPTIONS = [*request_options("edit"), *MODEL, *WRITING, CONFIG]
CONTROLS = "\x1b[2J\x07\x9b\u202e"
UNPRINTABLE = {c for c in CONTROLS if not c.isprintable()}


def read(*words: str, options: list[Option] = OPTIONS) -> dict[str, Any]:
    return parse(options, words, "kinema edit", "a test")


def config(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", 'prompt = "é"'), ("a.json", '{"prompt": "é"}'), ("a.yml", "prompt: é")]
)
def test_a_config_is_read_in_the_encodings_of_editors(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    assert read("--config", str(config(tmp_path, name, text.encode(encoding))))["prompt"] == "é"


ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", ALIASES + "prompt: *i", "more than 2,000,000 values"),
        ("a.yaml", "prompt: " + "[" * 3000, "nested deeper"),
        ("a.json", '{"prompt": ' + "[" * 100_000, "nested deeper"),
        ("a.toml", "prompt = " + "[" * 5000, "nested deeper"),
        ("a.json", '{"frames": 1e999}', "not a finite number"),
        ("a.toml", "frames = 1e999", "frames is inf|not finite"),
        ("a.json", '{"frames": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ("a.json", json.dumps({"sampler": ["x" * 10**5] * 2}), "sampler is"),
        ("a.json", json.dumps({"x" * 10**5: 1}), "there is no option"),
        ("a.json", b"\xff{}", "is not UTF-8"),
        ("a.json", "[1]", "no table"),
        ("a.txt", "", "expected .yaml, .toml or .json"),
        ("a.json", " " * 2**19, "at most 262,144 are read"),
    ],
)
def test_a_config_that_would_exhaust_memory_is_refused_in_one_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(BadRequest, match=message) as refused:
        read("--config", str(config(tmp_path, name, text)))
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def test_a_config_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(BadRequest, match="not a regular file"):
        read("--config", str(tmp_path / "a.json"))


def test_a_value_of_extra_is_bounded_like_a_config() -> None:
    assert read("--extra", "a=[1, 2]", "--extra", "b=words")["extra"] == {"a": [1, 2], "b": "words"}
    for word in ("[" * 100_000, "9" * 30, "1e999"):
        with pytest.raises(BadRequest) as refused:
            read("--extra", f"a={word}")
        assert len(str(refused.value)) < 200


# --------------------------------------------------------------------------------------------- home


@pytest.mark.parametrize("by_config", [False, True])
def test_a_tilde_expands_in_every_option_that_names_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_config: bool
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {
        "video": "~/a.mp4", "output": "~/b.mp4", "model": "~/c", "lora": ["~/d:0.5"], "add": ["motion=~/e"],
        "control": ["~/f"], "ip_image": ["face=~/g"], "extra": {"control": ["~/h"]}, "prompt": "~/not a path",
    }  # fmt: skip
    if by_config:
        found = read("--config", str(config(tmp_path, "a.json", json.dumps(given))))
    else:
        words = [
            f"--{name.replace('_', '-')}={v[0] if isinstance(v, list) else v}"
            for name, v in given.items()
            if name not in ("video", "prompt", "extra")
        ]
        found = read(given["video"], given["prompt"], *words, '--extra=control=["~/h"]')  # type: ignore[arg-type]
    expected = {**{k: v for k, v in found.items() if k in given}}
    assert str(expected.pop("output")) == "/home/me/b.mp4"
    assert expected == {
        "video": "/home/me/a.mp4", "model": "/home/me/c", "lora": ["/home/me/d:0.5"], "add": ["motion=/home/me/e"],
        "control": ["/home/me/f"], "ip_image": ["face=/home/me/g"], "extra": {"control": ["/home/me/h"]},
        "prompt": "~/not a path",
    }  # fmt: skip


def test_a_file_named_tilde_is_reached_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("./~", "~clip.mp4", "a~/b", "~nobody-here/a"):
        assert read(name)["video"] == name
    assert read("~", options=[FILE])["file"] == "/home/me"
    assert read("~/a", options=list(CONVERT))["source"] == "/home/me/a"


# ------------------------------------------------------------------------------------------ printing


def test_counts_are_printed_with_separators_and_seeds_without() -> None:
    lines = list(_lines({"bytes": 1234567, "recipe": {"seed": 1234567, "request": {"seed": 7654321}}}))
    assert [line.split()[-1] for line in lines] == ["1,234,567", "recipe", "1234567", "request", "7654321"]


def test_control_characters_from_a_file_are_never_printed(capsys: pytest.CaptureFixture[str]) -> None:
    entries = {f"name{CONTROLS}": {"inner": CONTROLS}, "prompt": "é 漢字"}
    _write("\n".join(_lines(entries)))
    _write(entries)
    printed = capsys.readouterr().out
    assert not UNPRINTABLE & set(printed)
    assert printed.count("é 漢字") == 2
    assert json.loads(printed[printed.index("{") :]) == entries


def test_notes_are_printed_without_control_characters() -> None:
    for display in (Lines, JsonLines):
        stream = io.StringIO()
        display(stream)(Note(f"it is {CONTROLS}"))
        assert "it is" in stream.getvalue()
        assert not UNPRINTABLE & set(stream.getvalue())


def test_an_error_message_is_short_and_printable() -> None:
    message, code = cli.ending(BadRequest("a" * 10**6 + CONTROLS))
    assert (code, len(message) < 400) == (2, True)
    assert cli.ending(BadRequest(CONTROLS))[0] == r"\x1b[2J\x07\x9b\u202e"


def test_a_name_outside_the_encoding_of_the_terminal_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert cli.main(["inspect", os.fsdecode(b"/no/such/\xff.mp4")]) == 2
    assert rb"there is no file /no/such/\udcff.mp4" in raw.getvalue()


def test_a_very_long_name_is_shortened() -> None:
    assert len(unknown_name("family", "x" * 10**7, ["vdm"])) < 200
