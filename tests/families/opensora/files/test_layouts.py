"""Layouts of the transformer against the original's fused modules (recorded) and diffusers' Flux."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from kinema.families.opensora import mmdit as module
from kinema.families.opensora.files import transformer_file
from kinema.families.opensora.files.transformer_file import TransformerFile, axes, recognise
from kinema.families.opensora.mmdit import MMDiT
from kinema.nn.meta import on_meta


def relative(native, foreign):
    return float((native.detach() - foreign.detach()).abs().max() / foreign.abs().max())


def header_of(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def upstream_fused(config, seed=7, std=0.15):
    """Weights of the original's fused module, named and shaped as its code has them and drawn in the order of names."""
    width, head, hidden = config.width, config.width // config.heads, int(config.width * config.mlp)
    shapes = {}

    def layer(name, out, columns):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, columns), (out,)

    layer("img_in", width, config.features)
    layer("txt_in", width, config.text)
    if config.conditioned:
        layer("cond_in", width, config.features + config.patch**2)
    for name, columns in {"time_in": 256, "vector_in": config.vector, "guidance_in": 256}.items():
        if name != "guidance_in" or config.guided:
            layer(f"{name}.in_layer", width, columns)
            layer(f"{name}.out_layer", width, width)
    for i in range(config.double_blocks):
        for side in ("img", "txt"):
            block = f"double_blocks.{i}.{side}"
            layer(f"{block}_mod.lin", 6 * width, width)
            layer(f"{block}_attn.qkv", 3 * width, width)
            layer(f"{block}_attn.proj", width, width)
            layer(f"{block}_mlp.0", hidden, width)
            layer(f"{block}_mlp.2", width, hidden)
            shapes |= {f"{block}_attn.norm.{which}_norm.scale": (head,) for which in ("query", "key")}
    for i in range(config.single_blocks):
        block = f"single_blocks.{i}"
        layer(f"{block}.linear1", 3 * width + hidden, width)
        layer(f"{block}.linear2", width, width + hidden)
        layer(f"{block}.modulation.lin", 3 * width, width)
        shapes |= {f"{block}.norm.{which}_norm.scale": (head,) for which in ("query", "key")}
    layer("final_layer.linear", config.features, width)
    layer("final_layer.adaLN_modulation.1", 2 * width, width)
    draw = np.random.RandomState(seed)
    return {name: torch.from_numpy(draw.standard_normal(shapes[name]) * std).float() for name in sorted(shapes)}


def ran(config, tensors, told):
    model = MMDiT(config).eval()
    model.load_state_dict(tensors)
    given = torch.cat([told["mask"], told["given"]], dim=1) if config.conditioned else None
    guidance = told["guidance"] if config.guided else None
    with torch.no_grad():
        return model(told["z"], told["time"], told["text"], told["pooled"], given, guidance)


KINDS = {
    "fused": {"rope": "half"},
    "flux": {"rope": "adjacent", "conditioned": False, "guided": True},
}


@pytest.mark.parametrize("here", ["half", "adjacent"])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_weights_give_the_outputs_of_the_original_in_either_rotary_layout(kind, here, mmdit, recorded):
    config = replace(mmdit, **KINDS[kind])
    tensors, told = upstream_fused(config), recorded("mmdit")
    file = recognise(header_of(tensors), {"rope": config.rope}, here)
    assert (file.config, file.kind) == (config, "fused")
    native = ran(replace(config, rope=here), file.to_ours(tensors, "this"), told)
    assert relative(native, told[f"out.{kind}"]) < 1e-4
    back = file.table.backward(file.to_ours(tensors, "this"), "native")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_rows_that_are_not_moved_give_other_outputs(mmdit, recorded):
    config = replace(mmdit, **KINDS["flux"])
    tensors, told = upstream_fused(config), recorded("mmdit")
    unmoved = recognise(header_of(tensors), {"rope": "half"}).to_ours(tensors, "this")
    assert relative(ran(replace(config, rope="half"), unmoved, told), told["out.flux"]) > 1e-3
    scales = recognise(header_of(tensors), {}, "half").to_ours(tensors, "this")
    scales |= {name: tensor for name, tensor in tensors.items() if name.endswith("norm.scale")}
    assert relative(ran(replace(config, rope="half"), scales, told), told["out.flux"]) > 1e-3


def test_diffusers_runs_exported_weights_as_we_do(mmdit, fill):
    """With the module's order of scale and shift, and the published layout of native."""
    config = replace(mmdit, conditioned=False, mlp=4.0)
    native = fill(MMDiT(config), 3)
    file = TransformerFile(replace(config, rope="adjacent"), "diffusers", "half")
    tensors = {name: file.make_foreign(name, native.state_dict().__getitem__) for name in file.foreign}
    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=20, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=24, pooled_projection_dim=12, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    flux.load_state_dict(tensors)
    z, text, pooled, time = torch.randn(1, 5, 2, 4, 6), torch.randn(1, 7, 24), torch.randn(1, 12), torch.tensor([0.7])
    ids = torch.cartesian_prod(*(torch.arange(n).float() for n in (2, 2, 3)))
    with torch.no_grad():
        foreign = flux(
            hidden_states=module.patched(z, 2), encoder_hidden_states=text, pooled_projections=pooled, timestep=time,
            img_ids=ids, txt_ids=torch.zeros(7, 3),
        ).sample  # fmt: skip
        assert relative(module.patched(native(z, time, text, pooled), 2), foreign) < 1e-5
    told = recognise(header_of(tensors), {}, "half")
    assert told.config == replace(config, rope="adjacent")
    back = told.to_ours(tensors, "this")
    assert all(torch.equal(back[name], tensor) for name, tensor in native.state_dict().items())


@pytest.mark.parametrize("kind", ["separate", "fused", "diffusers"])
@pytest.mark.parametrize("changes", [{}, {"patch": 1, "channels": 9}, {"qkv_bias": False}, {"single_blocks": 1}])
def test_sizes_are_read_from_shapes(kind, changes, mmdit):
    rope = "half" if kind == "separate" else "adjacent"
    config = replace(mmdit, **changes, rope=rope)
    shapes = TransformerFile(config, kind, rope).foreign
    told = recognise({name: (shape, torch.bfloat16) for name, shape in shapes.items()}, {})
    assert (told.config, told.kind) == (config, kind)


def test_the_published_rotary_axes_follow_from_the_width_of_a_head():
    assert axes(128) == (16, 56, 56)
    assert axes(16) == (4, 6, 6)


def test_the_transformer_of_each_layout_is_of_published_size():
    with on_meta():
        count = sum(p.numel() for p in MMDiT(transformer_file.MMDiTConfig()).parameters())
    for kind in ("separate", "fused", "diffusers"):
        shapes = TransformerFile(transformer_file.MMDiTConfig(), kind, "half").foreign
        assert sum(np.prod(shape, dtype=np.int64) for shape in shapes.values()) == count == 11_891_390_528
        assert len(shapes) == {"separate": 1082, "fused": 1082 - 4 * (38 + 38), "diffusers": 1082 + 2 * 38}[kind]
