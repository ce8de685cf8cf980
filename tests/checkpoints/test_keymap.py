from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.checkpoints.keymap import KeyMap, linear_from_conv, permuted
from kinema.schema import BadRequest

PAIRS = [
    ("unet.in.{}.{}.to_q.weight", "blocks.{}.layers.{}.q.weight"),
    ("unet.in.{}.{}.to_q.bias", "blocks.{}.layers.{}.q.bias"),
    ("proj.{}.weight", "projection.{}.weight", linear_from_conv(2)),
    ("turned.{}.weight", "straight.{}.weight", permuted(2, 0, 1)),
    ("head", "out.head"),
    ("pos_{}", "positions.{}.table"),
]


def of(name: str) -> torch.Tensor:
    """Return a tensor with the shape that its pair's transform expects and distinct values."""
    shape = {"proj": (3, 4, 1, 1), "turned": (2, 3, 4)}.get(name.split(".", maxsplit=1)[0], (3,))
    return torch.arange(torch.tensor(shape).prod(), dtype=torch.float32).reshape(shape) + len(name)


foreign_names = st.sampled_from(PAIRS).flatmap(
    lambda pair: st.tuples(*[st.integers(0, 99)] * pair[0].count("{}")).map(lambda n: pair[0].format(*n))
)


@given(st.sets(foreign_names, max_size=20))
def test_backward_inverts_forward_for_any_keys(names: set[str]) -> None:
    keys = KeyMap(PAIRS)
    tensors = {name: of(name) for name in names}
    native = keys.forward(tensors)
    assert len(native) == len(tensors)
    again = keys.backward(native)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in names)


def test_placeholders_keep_their_order_and_transforms_are_applied() -> None:
    keys = KeyMap(PAIRS)
    native = keys.forward({"unet.in.7.2.to_q.weight": torch.ones(1), "proj.x.weight": torch.zeros(3, 4, 1, 1)})
    assert {name: tuple(t.shape) for name, t in native.items()} == {
        "blocks.7.layers.2.q.weight": (1,),
        "projection.x.weight": (3, 4),
    }
    turned = torch.arange(24.0).reshape(2, 3, 4)
    assert keys.forward({"turned.0.weight": turned})["straight.0.weight"][3, 1, 2] == turned[1, 2, 3]
    assert keys.rename("head") == "out.head"
    assert keys.rename_back("positions.5.table") == "pos_5"
    assert keys.rename("nothing") is None


def test_a_placeholder_does_not_match_a_dot() -> None:
    assert KeyMap([("a.{}.w", "b.{}.w")]).rename("a.1.2.w") is None
    assert KeyMap([("a.b.w", "c")]).rename("aXb.w") is None


def test_unknown_keys_are_named_and_counted() -> None:
    tensors = {f"odd.{i}": torch.zeros(1) for i in range(5)} | {"head": torch.zeros(1)}
    with pytest.raises(BadRequest, match=r"my\.ckpt has 5 unknown keys \(odd\.0, odd\.1, odd\.2, …\)"):
        KeyMap(PAIRS).forward(tensors, "my.ckpt")


def test_an_ambiguous_or_colliding_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.0\.w' is matched by 'a\.\{\}\.w' and by 'a\.0\.w'"):
        KeyMap([("a.{}.w", "b.{}.w"), ("a.0.w", "c")]).forward({"a.0.w": torch.zeros(1)})
    with pytest.raises(ValueError, match="'b' and another key both become 'c'"):
        KeyMap([("a", "c"), ("b", "c")]).forward({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match="different numbers"):
        KeyMap([("a.{}", "b")])
