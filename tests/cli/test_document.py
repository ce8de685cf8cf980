"""`--document`: a verb with the request and media of a document."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kinema import Clip, Document, Request
from kinema.cli.document import with_document
from kinema.cli.main import main
from kinema.media.metadata import read_recipe


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("document")
    Clip(torch.rand(1, 3, 5, 16, 16) * 2 - 1, 8.0).save(folder / "ball.webp")
    Image.new("L", (16, 16), 255).crop((0, 0, 16, 16)).save(folder / "mask.png")
    request = Request(
        task="inpaint",
        prompt="a star",
        seed=3,
        steps=2,
        video=str(folder / "ball.webp"),
        masks={0: str(folder / "mask.png")},
    )
    return Document.of(request, model="vdm/tiny").save(folder / "star.kinema.json")


def frames(path: Path) -> str:
    return str(read_recipe(path)["frames_hash"])


def test_a_document_and_its_options_give_the_same_clip(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = document.parent
    options = ["--seed", "3", "--steps", "2", "--mask-at", f"0={beside / 'mask.png'}", "-m", "vdm/tiny"]
    one, other, third = (tmp_path / f"{name}.webp" for name in "abc")
    assert main(["inpaint", "--document", str(document), "-o", str(one)]) == 0
    assert main(["inpaint", str(beside / "ball.webp"), "a star", *options, "-o", str(other)]) == 0
    assert frames(one) == frames(other)
    assert list(read_recipe(one)["inputs"]) == ["mask at 0", "video"]
    assert main(["inpaint", "--document", str(document), "--seed", "4", "-o", str(third)]) == 0
    assert frames(third) != frames(one)


def test_add_ons_of_a_document_are_those_of_the_clip(tmp_path: Path) -> None:
    document = Document.of(
        Request(prompt="a red ball", steps=1, seed=3),
        model="animatediff-pocket",
        add={"style": "animatediff-pocket-night"},
    ).save(tmp_path / "night.kinema.json")
    one, other = tmp_path / "one.webp", tmp_path / "other.webp"
    assert Document.read(document).add == {"style": "animatediff-pocket-night"}
    assert main(["generate", "--document", str(document), "-o", str(one)]) == 0
    options = ["-m", "animatediff-pocket", "--add", "style=animatediff-pocket-night", "--steps", "1", "--seed", "3"]
    assert main(["generate", "a red ball", *options, "-o", str(other)]) == 0
    assert frames(one) == frames(other)


def test_a_document_of_another_verb_or_with_files_of_its_own_is_refused(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", "--document", str(document)]) == 2
    assert "the document is for kinema inpaint, not edit" in capsys.readouterr().err
    for extra, message in (
        ({"model": str(tmp_path / "x.safetensors")}, "which Kinema does not list; give --model yourself"),
        ({"loras": {"/tmp/x": 1.0}}, "give its file yourself with --lora"),
        ({"add": {"style": "/tmp/x"}}, "give its file yourself with --add style=FILE"),
    ):
        path = Document({"prompt": "x"}, **extra).save(tmp_path / "x.kinema.json", overwrite=True)  # type: ignore[arg-type]
        assert main(["generate", "--document", str(path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "given", "options"),
    [
        ({"model": "animatediff-pocket"}, {"model": "zoetrope"}, {"model": "zoetrope"}),
        (
            {"model": "animatediff-pocket"},
            {"model": "animatediff-pocket"},
            {"model": "animatediff-pocket", "add": ["style=animatediff-pocket-night"]},
        ),
        ({}, {"model": "mine"}, {"model": "mine", "add": ["style=animatediff-pocket-night"]}),
        ({"add": {"style": "/tmp/x"}}, {"add": ["style=mine"]}, {"add": ["style=mine"]}),
        ({"model": "/tmp/x", "add": {"style": "/tmp/x"}}, {"model": "mine"}, {"model": "mine"}),
        ({"loras": {"/tmp/x": 1.0}, "add": {}}, {"lora": ["mine:1"]}, {"lora": ["mine:1"]}),
    ],
)
def test_the_command_lines_names_replace_the_documents_and_another_model_has_none_of_its_add_ons(
    tmp_path: Path, names: dict, given: dict, options: dict
) -> None:
    named = {"add": {"style": "animatediff-pocket-night"}, **names}
    path = Document({"prompt": "x"}, **named).save(tmp_path / "x.kinema.json")
    with with_document("generate", {"document": path, **given}) as found:
        assert {name: found[name] for name in ("model", "add", "lora") if name in found} == options
