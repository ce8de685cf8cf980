from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinema.evaluation import measuring, prompt_files
from kinema.evaluation.options import EvaluateOptions
from kinema.events import Event, Note
from kinema.schema import BadRequest

PROMPTS = ["a red ball rolls right", "a violet star hops", "a white letter A spins"]


def written(folder: Path, name: str) -> Path:
    path = folder / name
    texts = {
        ".txt": "\n".join(["", *PROMPTS, ""]),
        ".csv": "\n".join(["prompt,trained", *(f"{p},no" for p in PROMPTS)]),
        ".jsonl": "\n".join(json.dumps({"prompt": p}) for p in PROMPTS),
        ".json": json.dumps([{"caption": p} for p in PROMPTS]),
    }
    path.write_text(texts[path.suffix], encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.json"])
def test_prompts_are_read_in_order_and_the_first_of_them_if_asked(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    assert prompt_files.read(path) == PROMPTS
    assert measuring.prompts_of(EvaluateOptions(prompts_file=str(path), prompts=2)) == PROMPTS[:2]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "a red ball rolls right\na dog runs\n", "a.txt line 2 is .*a dog runs.* not in the playroom grammar"),
        ("a.txt", "\n\n", "a.txt has 0 prompts; expected at least 1"),
        ("a.csv", "name\nred\n", "has 0 prompts; expected one, in a column named text, caption, prompt"),
        ("a.csv", "prompt,prompt\na red ball spins,a blue box spins\n", "has more than one column named prompt"),
        ("a.CSV", "text;prompt\na red ball spins;a blue box spins\n", "a.CSV line 2 has prompts in text and prompt"),
        ("a.yaml", "- a red ball rolls right\n", "a.yaml is no list of prompts; expected .txt, .csv, .json, .jsonl"),
    ],
)
def test_what_the_oracle_cannot_judge_is_refused_with_its_place(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadRequest, match=sentence):
        prompt_files.read(path)


def test_too_few_prompts_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has 3 prompts; expected at least 4"):
        prompt_files.read(written(tmp_path, "a.txt"), 4)
    with pytest.raises(BadRequest, match="there is no file"):
        prompt_files.read(tmp_path / "none.txt")


def test_a_shipped_model_notes_how_many_prompts_its_training_could_draw() -> None:
    options = EvaluateOptions(prompts_file="own.txt")
    trained, tuning = "a red ball rolls right", "a green ball slides down"
    noted: list[Event] = []
    measuring.note_known_prompts("zoetrope", options, [trained, tuning], noted.append)
    measuring.note_known_prompts("zoetrope", options, [tuning], noted.append)
    measuring.note_known_prompts("my.safetensors", options, [trained], noted.append)
    (note,) = noted
    assert isinstance(note, Note)
    assert note.message == "training of zoetrope could draw what 1 of the 2 prompts say"
    assert measuring.trained_meanings("my.safetensors", [trained]) is None
