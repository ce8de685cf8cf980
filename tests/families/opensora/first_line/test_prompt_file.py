"""Prompt files and prompts per loop.

Reference: extract_json_from_prompts, extract_prompts_loop, split_prompt and merge_prompt of hpcaitech/Open-Sora 1.2
(bde3c42), extract_json_from_prompts and process_prompts of 1.1 (c37e6d6), read.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.families.opensora.first_line.masks import Group
from kinema.families.opensora.first_line.prompt_file import Prompt, merged, parsed, per_loop, read, segments
from kinema.schema import BadRequest


def test_a_file_of_plain_prompts_and_of_prompts_with_references(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(
        b"\xef\xbb\xbf  a red ball  \r\n\n"
        b'a car{"reference_path": "a.png;b.mp4", "mask_strategy": "0;0,1,0,-1,1"}\n'
        b'{"mask_strategy": "", "reference_path": ""}\n'
    )
    assert read(path) == (
        Prompt("a red ball"),
        Prompt("a car", ("a.png", "b.mp4"), (Group(), Group(0, 1, 0, -1, 1))),
        Prompt(""),
    )


def test_only_1_1_looks_for_json_behind_a_square_bracket() -> None:
    line = 'a sign [stop] {"reference_path": "a.png"}'
    assert parsed(line, "1.2") == parsed(line, "1.3") == Prompt("a sign [stop]", ("a.png",))
    with pytest.raises(BadRequest, match=r"the prompt has '\[stop\] .* after its text, which is not JSON"):
        parsed(line, "1.1")
    with pytest.raises(BadRequest, match="expected an object with reference_path and mask_strategy"):
        parsed('a sign ["stop"]', "1.1")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            'a {"reference": "b.png"}',
            r"prompts.txt line 2 has the key 'reference'; expected reference_path or mask_str",
        ),
        ('a {"reference_path": 3}', "has 3 for its reference_path; expected text"),
        ('a {"reference_path": "b.png"', "is not JSON"),
        ('a {"reference_path": "b.png"} {"mask_strategy": "0"}', "is not JSON"),
        ('a {"reference_path": "b.png;"}', "has an empty path in its reference_path"),
        ('a {"mask_strategy": "0,0,0,0,1,2"}', "line 2: mask_strategy group 1 .* edit ratio of 2; expected 0 to 1"),
        ("a " + '{"reference_path":' * 50_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"a good one\n{line}\n")
    with pytest.raises(BadRequest, match=sentence):
        read(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"\n \n", "has no prompts"), (b"\xff\xfe\xff", "prompts.txt"), (b"a" * ((4 << 20) + 1), "a file of prompts")],
    ids=["empty", "not text", "large"],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=sentence):
        read(path)


# ------------------------------------------------------------------------------------------ tables


def test_a_table_has_texts_and_what_else_is_json(tmp_path: Path) -> None:
    """As load_prompts of 1.3 (2ca632a), whose csv_reference_column_name is reference_path here."""
    path = tmp_path / "prompts.CSV"
    path.write_bytes(
        b'\xef\xbb\xbfreference_path,text\r\n,a red ball\r\na.png;b.mp4,"a car, driving\r\naway"\r\n\r\n'
        b',"a car{""reference_path"": ""a.png"", ""mask_strategy"": ""0""}"\r\n'
    )
    assert read(path, "1.3") == (
        Prompt("a red ball"),
        Prompt("a car, driving\r\naway", ("a.png", "b.mp4")),
        Prompt("a car", ("a.png",), (Group(),)),
    )
    path.write_text('text,mask_strategy,reference_path\na,"0;0,1,0,-1,1",a.png;b.png\n')
    assert read(path, "1.2") == (Prompt("a", ("a.png", "b.png"), (Group(), Group(0, 1, 0, -1, 1))),)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has the columns ''; expected text, and reference_path or mask_strategy"),
        ("prompt,reference_path\na,b", "has the columns 'prompt, reference_path'; expected text"),
        ("text,image\na,b.png", "has the column 'image'; expected text, reference_path, mask_strategy, each once"),
        ("text,text\na,b", "has the column 'text'; expected text, .* each once"),
        ("text,reference_path\na\n", "line 2 has 1 cell; expected 2, as the header"),
        ("text\na,b\n", "line 2 has 2 cells; expected 1"),
        ('text\n"a', "line 2 is not a row of a CSV file: unexpected end of data"),
        ("text\n" + "a" * 200_000, "is not a row of a CSV file: field larger than"),
        ("text,mask_strategy\na,0\nb,x", "line 3: mask_strategy group 1 .'x'. has 'x' for its loop"),
        ("text,reference_path\na,b.png;", "line 2 has an empty path in its reference_path"),
        ('text,mask_strategy\n"a{""reference_path"": ""b.png""}",0', "line 2 has JSON after its text, and columns"),
        ("text\n\n", "has no prompts"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(content)
    with pytest.raises(BadRequest, match=sentence) as refused:
        read(path, "1.3")
    assert "\n" not in str(refused.value)


# -------------------------------------------------------------------------------- prompts per loop


def test_each_loop_has_the_last_part_that_begins_before_it() -> None:
    assert per_loop("|0|a|2| b |3|c", 5) == ("a", "a", "b", "c", "c")
    assert per_loop("a|2|b", 2) == ("a|2|b", "a|2|b")
    assert per_loop("|0|a", 2) == ("a", "a")


@pytest.mark.parametrize(("loops", "said"), [(1, "1 loop counted"), (2, "2 loops counted")])
def test_parts_past_the_last_loop_are_refused(loops: int, said: str) -> None:
    assert per_loop("|0|a|2|b", 3) == ("a", "a", "b")
    with pytest.raises(BadRequest, match=f"has a part for loop 2, but {said} from 0 will be generated; give loop=3"):
        per_loop("|0|a|2|b", loops)


def test_parts_are_joined_as_they_were() -> None:
    for text in ("|0|a|2|b", "a", "|0|a"):
        assert segments(merged(segments(text))) == segments(text)
    assert merged(((0, "a"), (2, "b"))) == "|0|a|2|b"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("|0|a|2", r"ends after a loop's number; expected its text"),
        ("|0|a|x|b", "has 'x' for a loop's number"),
        ("|0|a|2|b|1|c", "has loop 1 after loop 2; expected increasing numbers"),
        ("|0|a|0|b", "has loop 0 after loop 0"),
    ],
)
def test_what_are_no_prompts_per_loop_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        per_loop(text, 3)
