"""``--lora``: files and weights, from the command line and a config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.cli.options import parse
from kinema.cli.verbs import CONFIG, MODEL, lora_weights, model_options
from kinema.schema import BadRequest


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        ([], {}),
        (["a.safetensors"], {"a.safetensors": 1.0}),
        (["a.safetensors:0.5", "b.safetensors:-1"], {"a.safetensors": 0.5, "b.safetensors": -1.0}),
        (["C:\\loras\\a.safetensors"], {"C:\\loras\\a.safetensors": 1.0}),
        (["C:\\a.safetensors:.25"], {"C:\\a.safetensors": 0.25}),
        (["a:b"], {"a:b": 1.0}),
        (["a:1e-1"], {"a": 0.1}),
    ],
)
def test_a_weight_follows_the_last_colon(words, weights):
    assert lora_weights(words) == weights
    assert list(lora_weights(words)) == list(weights)


def test_a_file_whose_name_ends_like_a_weight_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("style:2").touch()
    assert lora_weights(["style:2"]) == {"style:2": 1.0}


def test_one_file_twice_is_refused():
    with pytest.raises(BadRequest, match="--lora a is given twice"):
        lora_weights(["a", "a:0.5"])


def test_the_option_is_repeated_or_a_list_in_a_config_file(tmp_path):
    options = [*MODEL, CONFIG]
    assert model_options(parse(options, ["--lora", "a:2", "--lora", "b"], "p", "a")).lora == ["a:2", "b"]
    (tmp_path / "c.yaml").write_text("lora: [a:2, b]\nvariant: svd-xt\n")
    options_read = model_options(parse(options, ["--config", str(tmp_path / "c.yaml")], "p", "a"))
    assert (options_read.lora, options_read.variant) == (["a:2", "b"], "svd-xt")
    (tmp_path / "c.yaml").write_text("lora: a:2\n")
    assert model_options(parse(options, ["--config", str(tmp_path / "c.yaml")], "p", "a")).lora == ["a:2"]
    (tmp_path / "c.yaml").write_text("lora: {a: 2}\n")
    with pytest.raises(BadRequest, match=r"--lora is .*; expected PATH\[:WEIGHT\]"):
        parse(options, ["--config", str(tmp_path / "c.yaml")], "p", "a")
