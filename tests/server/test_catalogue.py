"""Models and LoRAs that clients may name."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kinema.server import catalogue as catalogues
from kinema.server.catalogue import Catalogue
from kinema.server.jobs import ServiceError
from kinema.server.settings import Settings


@pytest.fixture
def folder(tmp_path):
    root, outside = tmp_path / "models", tmp_path / "outside.safetensors"
    outside.write_bytes(b"x")
    for name in ("a.safetensors", "sub/b.ckpt", "sub/notes.txt", "pipe/model_index.json", "pipe/unet/w.safetensors"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name in ("net/config.json", "net/w.safetensors", "vdm/tiny/model_index.json", ".hidden/c.safetensors"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "inside.safetensors").symlink_to(root / "a.safetensors")
    (root / "leak.safetensors").symlink_to(outside)
    (root / "broken.safetensors").symlink_to(root / "gone")
    (root / "up").symlink_to(tmp_path)
    return root


@pytest.fixture
def catalogue(folder, tmp_path):
    (tmp_path / "loras" / "deep").mkdir(parents=True)
    (tmp_path / "loras" / "deep" / "soft.safetensors").write_bytes(b"x")
    (tmp_path / "loras" / "leak.safetensors").symlink_to(tmp_path / "outside.safetensors")
    own = {"model_folders": (folder,), "lora_folder": tmp_path / "loras", "aliases": {"sora-2": "a.safetensors"}}
    return Catalogue(Settings(folder=tmp_path / "store", **own))


def files(catalogue: Catalogue) -> set[str]:
    return {entry.id for entry in catalogue.entries() if entry.kind == "file"}


def test_files_and_folders_are_listed_by_their_names_and_links_out_are_left_out(catalogue):
    expected = {"a.safetensors", "sub/b.ckpt", "pipe", "net", "inside.safetensors", "./vdm/tiny"}
    assert files(catalogue) == expected


def test_a_name_leads_to_its_file_with_links_resolved(catalogue, folder):
    assert catalogue.model("inside.safetensors").source == str((folder / "a.safetensors").resolve())
    assert catalogue.model("sora-2").id == "a.safetensors"


@pytest.mark.parametrize("name", ["leak.safetensors", "../outside.safetensors", "/etc/passwd", "up/outside.ckpt"])
def test_a_name_that_is_not_listed_is_refused(catalogue, name):
    with pytest.raises(ServiceError, match="there is no model") as refused:
        catalogue.model(name)
    assert refused.value.status == 400


@pytest.mark.parametrize("name", ["owner/name", "stabilityai/sv3d", "hub:x/y", "https://host/x", "", "."])
def test_hub_identifiers_and_addresses_are_refused(catalogue, name):
    with pytest.raises(ServiceError):
        catalogue.model(name)


def test_published_and_included_names_are_never_taken_for_local_files(catalogue):
    assert catalogue.model("svd-xt").source == "hub:svd-xt"
    assert catalogue.model("zoetrope").source == "zoetrope"
    assert catalogue.model("vdm/tiny").source == "vdm/tiny"


def test_a_link_to_itself_is_left_out(catalogue, folder, tmp_path):
    before, rows = files(catalogue), catalogue.others()
    for where in (folder, tmp_path / "loras"):
        (where / "circle.safetensors").symlink_to("circle.safetensors")
    again = Catalogue(catalogue.settings)
    assert (files(again), again.others()) == (before, rows)


def test_a_changed_file_has_another_stamp(catalogue, folder, monkeypatch):
    before = catalogue.model("a.safetensors").stamp
    (folder / "a.safetensors").write_bytes(b"longer")
    monkeypatch.setattr(catalogues, "FRESH", -1.0)
    assert catalogue.model("a.safetensors").stamp != before


def test_loras_are_included_ones_and_those_of_the_folder(catalogue, tmp_path):
    assert catalogue.lora("deep/soft") == catalogue.lora("soft") == str(tmp_path / "loras/deep/soft.safetensors")
    assert catalogue.lora("animatediff-pocket-pans-left").endswith("pans-left.safetensors")
    for name in ("leak", "animatediff-pocket-night", "../outside", str(tmp_path / "loras/deep/soft.safetensors")):
        with pytest.raises(ServiceError, match="there is no LoRA"):
            catalogue.lora(name)


def test_add_ons_are_included_ones_and_files_of_models(catalogue, folder):
    assert catalogue.add_on("animatediff-pocket-night").source.endswith("weights/animatediff-pocket-night.safetensors")
    assert catalogue.add_on("animatediff-pocket").source.endswith("weights/animatediff-pocket.safetensors")
    found = catalogue.add_on("a.safetensors")
    assert (found.source, found.stamp) == (str(folder / "a.safetensors"), catalogue.model("a.safetensors").stamp)
    for name in ("animatediff-pocket-zooms-in", "svd", "vdm/tiny", "../a.safetensors", str(folder / "a.safetensors")):
        with pytest.raises(ServiceError, match="there is no add-on"):
            catalogue.add_on(name)


def test_rows_of_loras_and_add_ons_say_what_they_are(catalogue):
    rows = {row["id"]: row for row in catalogue.others()}
    assert (rows["soft"]["kind"], rows["soft"]["bytes"]) == ("lora", 1)
    assert rows["animatediff-pocket-night"]["slot"] == "style"


def test_an_old_listing_is_walked_again_once_outside_of_the_event_loop(catalogue, folder, monkeypatch):
    places, real = [], catalogues._in_folder

    def walk(root):
        places.append(threading.current_thread())
        return real(root)

    async def both() -> set[str]:
        await asyncio.gather(catalogue.refresh(), catalogue.refresh())
        return files(catalogue)

    files(catalogue)
    monkeypatch.setattr(catalogues, "_in_folder", walk)
    monkeypatch.setattr(catalogues, "FRESH", 0.5)
    catalogue._found = (catalogue._found[0] - 1, *catalogue._found[1:])
    (folder / "new.safetensors").write_bytes(b"x")
    assert "new.safetensors" in asyncio.run(both())
    assert len(places) == 1
    assert places[0] is not threading.main_thread()
