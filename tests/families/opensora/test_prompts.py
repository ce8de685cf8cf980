"""The end of Open-Sora 2.0's prompts: frame rate and motion score, each once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.families.opensora.prompts import completed


@pytest.mark.parametrize(
    ("prompt", "complete"),
    [
        ("raining", "raining. 24 FPS. 4 motion score."),
        ("raining.", "raining. 24 FPS. 4 motion score."),
        ("  raining \n", "raining. 24 FPS. 4 motion score."),
        ("raining. 16 FPS.", "raining. 16 FPS. 4 motion score."),
        ("raining. 16 FPS. 9 motion score.", "raining. 16 FPS. 9 motion score."),
        ("raining. 24 FPS, 4 motion score.", "raining. 24 FPS, 4 motion score."),  # as captions had it in training
        ("raining. 9 motion score.", "raining. 9 motion score. 24 FPS."),
        ("rain at 24 FPS", "rain at 24 FPS. 4 motion score."),  # as in the original, the period comes first
        ("rain. 24 FPS. 4 motion score", "rain. 24 FPS. 4 motion score."),
        ("a gamer plays at 60 FPS. Neon.", "a gamer plays at 60 FPS. Neon. 24 FPS. 4 motion score."),
        ("shot at 24 FPS, handheld", "shot at 24 FPS, handheld. 24 FPS. 4 motion score."),
        ("9 motion score. rain", "9 motion score. rain. 24 FPS. 4 motion score."),
        ("", ""),
    ],
)
def test_prompts_end_with_what_they_lack(prompt: str, complete: str) -> None:
    assert completed(prompt, 24.0, 4.0) == complete


def test_numbers_are_written_as_in_training() -> None:
    assert completed("rain", 24.0, 4.0) == "rain. 24 FPS. 4 motion score."
    assert completed("rain", 29.97, 6.5) == "rain. 29.97 FPS. 6.5 motion score."
    assert completed("rain", 24.0, None) == "rain. 24 FPS."


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from([8.0, 24.0, 29.97]), st.sampled_from([None, 1.0, 4.0, 6.5]))
def test_completing_twice_changes_nothing(prompt: str, fps: float, motion: float | None) -> None:
    """The original adds both again to a prompt that has them."""
    once = completed(prompt, fps, motion)
    assert completed(once, fps, motion) == once
    assert once.count(" FPS.") <= prompt.count(" FPS.") + 1
