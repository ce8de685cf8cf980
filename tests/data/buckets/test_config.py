"""Bucket files: JSON, YAML and Python of one meaning, and one sentence for hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kinema.data.buckets import Buckets
from kinema.data.buckets.config import Row
from kinema.grid import FrameGrid, LatentGrid, Lattice, Resolution, Resolutions
from kinema.schema import BadRequest

SIZES = {
    "small": Resolution(4096, {"1:1": (64, 64)}, {"1:1": 1.0}),
    "100": Resolution(100, {"1:1": (16, 8)}, {"1:1": 2}),
}


def find(name: str) -> Resolution:
    if name not in SIZES:
        raise BadRequest(f"the resolution is {name[:20]!r}; expected small or 100")
    return SIZES[name]


LATTICE = Lattice(LatentGrid(FrameGrid(4, causal=True)), 8, 8, max_frames=17, resolutions=Resolutions(find, "1.2"))
PYTHON = """
# buckets
import os
bucket_config = {"small": {1: (0, None)}}
model = dict(x=[1, 2], **os.environ)
bucket_config = {  # the last one counts
    "_delete_": True,
    "small": {1: (1.0, 4), 5: ((0.5, 1e-1), 2),},
    '100': {9: [1, (3)]},
}
print("never run", bucket_config[
    "small"])
"""
SAME = {"small": {1: (1.0, 4), 5: ((0.5, 0.1), 2)}, "100": {9: (1, 3)}}
YAML = "small:\n  1: [1.0, 4]\n  5: [[0.5, 0.1], 2]\n100:\n  9: [1, 3]\n"


def of(data: Any) -> Buckets:
    return Buckets.of(data, LATTICE, "b.py", "a model")


def read(folder: Path, name: str, text: str | bytes) -> Buckets:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Buckets.read(path, LATTICE, "a model")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", PYTHON),
        ("b.py", repr(SAME)),
        ("c.json", json.dumps(SAME)),
        ("d.json", json.dumps({"bucket_config": SAME})),
        ("e.yaml", YAML),
        ("f.yml", f"bucket_config:\n{''.join(f'  {line}' + chr(10) for line in YAML.splitlines())}"),
    ],
)
def test_json_yaml_and_python_are_read_alike(tmp_path: Path, name: str, text: str) -> None:
    found = read(tmp_path, name, text)
    assert found.rows == {"small": {5: Row(0.5, 0.1, 2), 1: Row(1.0, None, 4)}, "100": {9: Row(1.0, None, 3)}}
    assert [*found.rows] == ["small", "100"]
    assert [*found.rows["small"]] == [5, 1]
    assert (found.count, found.largest, found.has_images) == (3, 4, True)
    assert found.text == of(SAME).text == "small 5: (0.5, 0.1) × 2, 1: 1 × 4; 100 9: 1 × 3"


def row(value: Any) -> Any:
    return {"small": {"5": value}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"b.py holds \[\]; expected resolutions such as"),
        ({}, "b.py keeps no clip"),
        (row([0, None]), "b.py keeps no clip"),
        ({"small": {}}, r"small is \{\}; expected resolutions"),
        ({"small": [1, 2]}, r"small is \[1, 2\]"),
        ({"4k": {5: (1.0, 1)}}, "b.py: the resolution is '4k'; expected small or 100"),
        ({"x" * 10**5: {5: (1.0, 1)}}, "b.py: the resolution is 'xxxxxxxxxxxxxxxxxxxx'; expected"),
        ({None: {5: (1.0, 1)}}, "the resolution is 'None'"),
        ({"small": {0: (1.0, 1)}}, "a number of frames of small is 0; expected 1 to 4096"),
        ({"small": {-5: (1.0, 1)}}, "a number of frames of small is -5"),
        ({"small": {"five": (1.0, 1)}}, "a number of frames of small is 'five'"),
        ({"small": {5.0: (1.0, 1)}}, "a number of frames of small is 5.0"),
        ({"small": {True: (1.0, 1)}}, "a number of frames of small is True"),
        ({"small": {"9" * 5000: (1.0, 1)}}, "a number of frames of small is '9999"),
        ({"small": {5: (1.0, 1), "05": (1.0, 1)}}, "small has 5 frames twice"),
        ({"small": {6: (1.0, 1)}}, "small × 6 does not fit a model, which encodes whole latent frames; .* is 9"),
        ({"small": {21: (1.0, 1)}}, "small × 21 is longer than the 17 frames of a model"),
        (row(1), r"small × 5 is 1; expected \(keep probability, clips per batch\)"),
        (row("ab"), "small × 5 is 'ab'"),
        (row([1.0]), r"small × 5 is \[1.0\]"),
        (row([-0.5, 1]), "small × 5 has the probability -0.5; expected a number from 0 to 1"),
        (row([1.5, 1]), "the probability 1.5"),
        (row([float("nan"), 1]), "the probability nan"),
        (row(["1", 1]), "the probability '1'"),
        (row([True, 1]), "the probability True"),
        (row([[1.0, 0.5, 0.1], 1]), r"the probability \[1.0, 0.5, 0.1\]"),
        (row([[1.0, 2], 1]), r"the probability \[1.0, 2\]"),
        ({"small": {1: ((1.0, 0.5), 1)}}, "small × 1 has two probabilities; expected one"),
        (row([1.0, 0]), "small × 5 has batches of 0 clips; expected a whole number from 1 to 1,000,000"),
        (row([1.0, -4]), "batches of -4 clips"),
        (row([1.0, 4.0]), "batches of 4.0 clips"),
        (row([1.0, None]), "batches of None clips"),
        (row([1.0, 10**9]), "batches of 1000000000 clips"),
    ],
)
def test_what_is_no_bucket_configuration_is_refused_in_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as error:
        of(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "{}", "is not a bucket file; expected a name ending in .json, .yaml or .py"),
        ("a.json", "[" * 10**5, "nested deeper than 48 levels"),
        ("a.json", '{"small": {"5": [1.0, ' + "9" * 100 + "]}}", "at most 24 digits"),
        ("a.json", "{" + " " * 2**18 + "}", "at most 262,144 are read; expected a bucket file"),
        ("a.json", b"\xff\xfe\xfa", "is not UTF-8 text"),
        ("a.json", "{'small': 1}", "is not JSON"),
        ("a.yaml", "small: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("a.py", "x = 1", r"has no bucket_config; expected bucket_config = \{…\}"),
        ("a.py", "", "has no bucket_config"),
        ("a.py", "bucket_config = ", "holds '', which is not part of a literal"),
        ("a.py", "bucket_config = {'small': {5: (1.0, 2)", "is not Python"),
        ("a.py", "bucket_config = dict(small=1)", "line 1 holds 'dict', which is not part of a literal"),
        ("a.py", "bucket_config = {'small': open('x')}", "holds 'open'"),
        ("a.py", "bucket_config = {'small': f'{1}'}", "holds \"f'\\{1\\}'\""),
        ("a.py", "bucket_config = {'small': b'x'}", "holds \"b'x'\""),
        ("a.py", "bucket_config = {'small': 1j}", "holds '1j'"),
        ("a.py", "bucket_config = {'small': --1}", "holds '-'"),
        ("a.py", "bucket_config = {**{}}", r"holds '\*\*'"),
        ("a.py", "bucket_config = {'small': 2 ** 9}", r"holds '\*\*'"),
        ("a.py", "bucket_config = {(1, 2): 3}", "line 1: expected keys that are texts or numbers, each once"),
        ("a.py", "bucket_config = {'small': 1, 'small': 2}", "each once"),
        ("a.py", f"bucket_config = {'(' * 90}{')' * 90}", "nested deeper than 48 levels"),
        ("a.py", f"bucket_config = {'(' * 10**4}{')' * 10**4}", "nested deeper than 48 levels|is not Python"),
        ("a.py", f"bucket_config = {'-' * 10**4}1", "holds '-'"),
        ("a.py", f"bucket_config = {{1: {'9' * 5000}}}", "holds a number of more than 24 digits"),
        ("a.py", "bucket_config = {'small': {5: (1e999, 2)}}", "holds a number that is not finite"),
        ("a.py", f"bucket_config = {'-' * 40_000}1", "holds more than 32,768 words and marks"),
        ("a.py", "bucket_config = {'small': {5: (1.0, 2)}} | x", r"line 1 holds '\|', which is not part of a literal"),
        ("a.py", "bucket_config = {}.copy()", r"holds '\.'"),
        ("a.py", "{} + {}", r"holds '\+'"),
        (
            "a.py",
            "bucket_config = {}\nbucket_config['small'] = {}",
            "a.py line 2 changes bucket_config, but the file is not run",
        ),
        ("a.py", "bucket_config = {}\nbucket_config.update(x)", "line 2 changes bucket_config"),
        ("a.py", "bucket_config = 5", "holds 5; expected resolutions"),
        ("a.py", "def f():\n  bucket_config = {}", "has no bucket_config"),
    ],
)
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as error:
        read(tmp_path, name, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_file_of_too_many_rows_is_refused() -> None:
    lattice = Lattice(max_frames=4096, min_side=8, side_multiple=8, resolutions=Resolutions(find, "1.2"))
    rows = {frames: (1.0, 1) for frames in range(1, 2050)}
    with pytest.raises(BadRequest, match="b.py has more than 4,096 resolutions and lengths"):
        Buckets.of({"small": rows, "100": rows}, lattice, "b.py", "a model")


def test_sides_that_the_model_does_not_support_are_refused() -> None:
    lattice = Lattice(side_multiple=16, resolutions=Resolutions(find, "1.2"))
    with pytest.raises(
        BadRequest, match=r"100 × 5 has the size 16×8; a model has sides of 16 to 8192 pixels, multiples of 16"
    ):
        Buckets.of({"100": {5: (1.0, 1)}}, lattice, "b.py", "a model")


def test_a_model_of_one_size_refuses_buckets() -> None:
    with pytest.raises(BadRequest, match="a model is trained at one size, so buckets do not apply; leave out buckets"):
        Buckets.of(SAME, Lattice(), "b.py", "a model")


def test_accumulation_must_divide_every_batch() -> None:
    of({"small": {5: (1.0, 4), 9: (0, None)}}).check_parts(2)
    with pytest.raises(
        BadRequest, match="accumulate is 2; expected a divisor of the batch of every bucket, and that of 100 × 9 is 3"
    ):
        of(SAME).check_parts(2)
