"""Untrusted text: exceeding a limit gives one sentence in every format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema import bounds
from kinema.schema import BadRequest

PARSERS = {"json": bounds.from_json, "toml": bounds.from_toml, "yaml": bounds.from_yaml}
DEEP = {
    "json": "[" * 100_000,
    "toml": "a = " + "[" * 100_000,
    "yaml": "[" * 20_000,
}


@pytest.mark.parametrize("kind", PARSERS)
def test_deep_nesting_is_refused_in_one_sentence(kind: str) -> None:
    with pytest.raises(BadRequest, match="x is nested deeper than 48 levels"):
        PARSERS[kind](DEEP[kind], "x")


@pytest.mark.parametrize("levels", [bounds.MAX_DEPTH, bounds.MAX_DEPTH + 1])
def test_the_depth_limit_is_exact(levels: int) -> None:
    text = "[" * levels + "1" + "]" * levels
    if levels <= bounds.MAX_DEPTH:
        bounds.from_json(text, "x")
    else:
        with pytest.raises(BadRequest, match="nested deeper"):
            bounds.from_json(text, "x")


def test_dotted_keys_count_as_depth() -> None:
    with pytest.raises(BadRequest, match="nested deeper"):
        bounds.from_toml(".".join("a" * 120_000) + " = 1", "x")


def aliases(*, merged: bool) -> str:
    lines, before = ["a: &a {k: 1, l: 2}" if merged else "a: &a [x, x, x, x, x, x, x, x, x]"], "a"
    for name in "bcdefghijkl":
        nine = ", ".join([f"*{before}"] * 9)
        lines.append(f"{name}: &{name} {{<<: [{nine}], {name}: 1}}" if merged else f"{name}: &{name} [{nine}]")
        before = name
    return "\n".join(lines)


@pytest.mark.parametrize("merged", [False, True])
def test_aliases_count_as_often_as_they_are_reached(merged: bool) -> None:
    with pytest.raises(BadRequest, match="more than"):
        bounds.from_yaml(aliases(merged=merged), "x")


TABLE = "a: &a {" + ", ".join(f"k{i}: 1" for i in range(900)) + "}\n"


@pytest.mark.parametrize(
    "text",
    [
        TABLE + "b:\n" + "- {<<: *a}\n" * 3000,
        TABLE + "b: {<<: [" + "*a, " * 3000 + "*a]}",
        f"{aliases(merged=True)}\n<<: *l",  # the last table is merged before those that it merges
    ],
)
def test_what_yaml_merges_is_counted_over_the_whole_file_before_it_is_copied(text: str) -> None:
    with pytest.raises(BadRequest, match="merges more than 10,000 values"):
        bounds.from_yaml(text, "x")


def test_a_table_that_merges_itself_is_refused() -> None:
    with pytest.raises(BadRequest, match="nested deeper"):
        bounds.from_yaml("a: &a {<<: *a}", "x")


def test_an_alias_of_itself_is_too_deep() -> None:
    with pytest.raises(BadRequest, match="nested deeper"):
        bounds.from_yaml("&a [*a]", "x")


def test_ordinary_anchors_are_read() -> None:
    parsed = bounds.from_yaml("base: &b {steps: 5, seed: 1}\nmine: {<<: *b, seed: 2}", "x")
    assert parsed["mine"] == {"steps": 5, "seed": 2}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", '{"a": 1e999}'),
        ("json", '{"a": -1e999}'),
        ("json", '{"a": NaN}'),
        ("json", '{"a": Infinity}'),
        ("toml", "a = inf"),
        ("toml", "a = 1e999"),
        ("yaml", "a: .inf"),
        ("yaml", "a: .nan"),
        ("json", '{"a": ' + "9" * 5000 + "}"),
        ("toml", "a = " + "9" * 30),
        ("yaml", "a: 0x" + "f" * 200_000),
        ("yaml", "a: 2026-11-28"),
        ("toml", "a = 2026-11-28"),
        ("yaml", "a: !!python/object/apply:os.system [ls]"),
        ("json", "[" + "[]," * 3_000_000 + "1]"),
        ("json", '{"a": '),
        ("yaml", "a: [1"),
        ("toml", "a = "),
    ],
)
def test_implausible_configs_are_refused_in_one_short_sentence(kind: str, text: str) -> None:
    with pytest.raises(BadRequest) as error:
        PARSERS[kind](text, "x")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_infinity_is_refused_unless_allowed() -> None:
    assert bounds.from_json("[-Infinity]", "x", infinite=True) == [float("-inf")]
    with pytest.raises(BadRequest, match="NaN"):
        bounds.from_json("[NaN]", "x", infinite=True)
    with pytest.raises(BadRequest, match="1e999"):
        bounds.from_json("[1e999]", "x", infinite=True)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_a_quotation_is_one_short_printable_line(value: object) -> None:
    parsed = bounds.quoted(value)
    assert len(parsed) <= bounds.MAX_QUOTED
    assert parsed.isprintable()


def test_quoting_does_not_traverse_the_whole_value() -> None:
    shared: list = []
    for _ in range(60):
        shared = [shared] * 9  # written out whole it would have 9**60 parts
    assert bounds.quoted(shared).startswith("[[[[…], […], […]")
    assert bounds.quoted(10**5000) == "a number of about 4,983 digits"
    assert bounds.quoted("a") == "'a'"


def test_printable_text_has_no_control_characters() -> None:
    assert bounds.printable("a\x1b[31m\rb\x9b\u202e\ud800é😀") == "a\\x1b[31m\\rb\\x9b\\u202e\\ud800é😀"
    assert bounds.printable("/home/me/" + "a" * 100 + "/ball.mp4", 20) == "/home/me/a…/ball.mp4"
    assert len(bounds.printable("\x1b" * 10**6, 40)) == 40


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "a").write_text("abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert bounds.read_bytes(tmp_path / "link", 3) == b"abc"
    for name in ("fifo", "/dev/zero", "."):
        with pytest.raises(BadRequest, match="not a regular file"):
            bounds.read_bytes(tmp_path / name, 3)
    with pytest.raises(BadRequest, match="is 3 bytes long; at most 2 are read; expected a config"):
        bounds.read_bytes(tmp_path / "a", 2, "a config")
    with pytest.raises(BadRequest, match="cannot be read"):
        bounds.read_bytes(tmp_path / "none", 2)
    assert [bounds.is_regular(tmp_path / name) for name in ("a", "link", "fifo", "none", ".")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_decoded_by_its_byte_order_mark(kind: str) -> None:
    assert bounds.decoded("ein grüner Ball".encode(kind), "x") == "ein grüner Ball"


@pytest.mark.parametrize("data", ["grün".encode("latin-1"), "ab".encode("utf-16-le"), b"\xff\xfea"])
def test_undecodable_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequest, match="save it as UTF-8"):
        bounds.decoded(data, "x")


@pytest.mark.parametrize("digits", [30, 5000, 20_000])
@pytest.mark.parametrize(("kind", "text"), [("json", '{{"a": {}}}'), ("toml", "a = {}"), ("yaml", "a: {}")])
@pytest.mark.parametrize("sign", ["", "-"])
def test_too_many_digits_give_the_same_message_in_every_format(kind, text, sign, digits) -> None:
    with pytest.raises(BadRequest) as error:
        PARSERS[kind](text.format(sign + "9" * digits), "x")
    message = str(error.value).replace("about ", "")
    assert message == f"x holds a number of {digits:,} digits; at most 24 digits are read"


def test_yaml_numbers_of_base_60_and_8_stay_text() -> None:
    parsed = bounds.from_yaml(
        "[1:30:00, 190:20:30.15, -1:30, 010, 0_7, 0o17, 12, -3, 0, 0.5, 1_000, 0x1f, yes, off]", "x"
    )
    assert parsed[:6] == ["1:30:00", "190:20:30.15", "-1:30", "010", "0_7", "0o17"]
    assert parsed[6:] == [12, -3, 0, 0.5, 1000, 31, True, False]
