"""``kinema convert`` of motion modules and SparseCtrl: diffusers opens the folder, and the way back gives the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.families.animatediff import motion_file, sparse
from kinema.families.animatediff.config import TINY
from kinema.families.animatediff.sparse import SparseCtrl
from kinema.families.animatediff.unet import UNet
from kinema.schema import BadRequest

SIZE = replace(TINY, channels=(64, 128), heads=(8, 8), motion_heads=8)


def motion(positions=True):
    torch.manual_seed(0)
    state = {k: v for k, v in UNet(SIZE).state_dict().items() if ".motion_modules." in k}
    return motion_file.export("official", state, positions=positions)


def there_and_back(tmp_path, tensors, **how):
    first, folder, last = tmp_path / "first.safetensors", tmp_path / "folder", tmp_path / "last.safetensors"
    files.write_tensors(first, tensors)
    convert(first, folder, "diffusers", **how)
    convert(folder, last, "official")
    return folder, files.read_tensors(last)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_motion_module_goes_to_diffusers_and_back(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    tensors = motion()
    folder, again = there_and_back(tmp_path, tensors)
    assert equal(again, tensors)
    adapter = diffusers.MotionAdapter.from_pretrained(folder)
    assert adapter.config.use_motion_mid_block
    ours = motion_file.convert(motion_file.recognise(files.header(folder)), files.read_tensors(folder))
    assert equal(adapter.state_dict(), ours)


def test_positions_that_were_not_there_are_written_and_said(tmp_path):
    said = []
    _, again = there_and_back(tmp_path, motion(positions=False), on_event=said.append)
    table = again[
        "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
    ]
    assert table.shape == (1, 32, 128)
    assert any("sinusoids of 32 frames" in str(event) for event in said)


@pytest.mark.parametrize("kind", ["rgb", "scribble"])
def test_sparse_control_goes_to_diffusers_and_back(tmp_path, kind):
    from diffusers.models import SparseControlNetModel

    torch.manual_seed(0)
    ours = SparseCtrl(replace(SIZE, sparse=kind, sparse_positions=32)).state_dict()
    tensors = sparse.export("official", ours)
    folder, again = there_and_back(tmp_path, tensors)
    assert equal(again, tensors)
    assert equal(SparseControlNetModel.from_pretrained(folder).state_dict(), ours)


def test_a_layout_that_there_is_not_is_named(tmp_path):
    path = tmp_path / "mm.safetensors"
    files.write_tensors(path, motion())
    with pytest.raises(BadRequest, match="no layout of animatediff 'sgm'"):
        convert(path, tmp_path / "out.safetensors", "sgm")
