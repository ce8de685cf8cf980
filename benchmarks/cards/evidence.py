"""README's figures of docs/evidence/video-diffusion.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cards.figures import Passage, digits, read


def video_diffusion() -> Iterator[Passage]:
    measures = read("docs/evidence/video-diffusion.json")["figure"]["measures"]
    shown = {
        "fresh": ("interpolation_residual", "fresh"),
        "edited": ("interpolation_residual", "sdedit"),
        "luma": ("luma_second_difference", "sdedit"),
    }
    figures = {}
    for name, (measure, arm) in shown.items():
        value, low, high, count = measures[measure]["to the video model"][arm]
        figures |= {
            name: digits(value),
            f"{name}_low": digits(low),
            f"{name}_high": digits(high),
            "prompts": f"{count}",
        }
    yield Passage(
        "README.md",
        "on {prompts} prompts that neither was trained or tuned on. Generated frame by frame from fresh noise, the "
        "image model's clips flicker: their interpolation residual is {fresh} times that of the video model's clips "
        "({fresh_low} to {fresh_high}). If each frame is made from the one before it by SDEdit, it is {edited} times "
        "({edited_low} to {edited_high}), and brightness changes {luma} times as abruptly ({luma_low} to {luma_high}).",
        figures,
    )
