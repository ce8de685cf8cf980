"""README's figures of docs/evidence/video-diffusion.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cards.figures import Passage, digits, percent, read


def video_diffusion() -> Iterator[Passage]:
    found = read("docs/evidence/video-diffusion.json")["figure"]
    shown = {
        "fresh": ("interpolation_residual", "fresh"),
        "edited": ("interpolation_residual", "sdedit"),
        "luma": ("luma_second_difference", "sdedit"),
        "sharp": ("sharpness", "sdedit"),
        "jerk": ("jerk", "sdedit"),
    }
    figures = {}
    for name, (measure, arm) in shown.items():
        value, low, high, count = found["measures"][measure]["to the video model"][arm]
        figures |= {
            name: digits(value),
            f"{name}_low": digits(low),
            f"{name}_high": digits(high),
            "prompts": f"{count}",
        }
        figures[f"{name}_more"] = percent(value - 1)
    for name in ("colour", "shape"):
        share = found["shares"][name]["video"]
        figures |= {name: f"{share['right']}", "clips": f"{share['asked']}"}
    yield Passage(
        "README.md",
        "on {prompts} prompts that neither was trained or tuned on. Generated frame by frame from fresh noise, the "
        "image model's clips flicker: their interpolation residual is {fresh} times that of the video model's clips "
        "({fresh_low} to {fresh_high}). If each frame is made from the one before it by SDEdit, it is {edited} times "
        "({edited_low} to {edited_high}), and mean brightness changes {luma} times as abruptly ({luma_low} to "
        "{luma_high}); but those clips also have {sharp} times the sharpness of the video model's, and jerk differs by "
        "{jerk_more} % only. Both models draw blobs: the video model's clips have the right colour in {colour} of "
        "{clips}, the right shape in {shape}.",
        figures,
    )
