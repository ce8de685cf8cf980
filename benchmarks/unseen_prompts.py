"""The 64 prompts that no training or tuning of the shipped playroom models has read: print, write or check them.

    python -m benchmarks.unseen_prompts            # the list by the rule below
    python -m benchmarks.unseen_prompts check      # the same, then every training caption: two minutes
    kinema evaluate --prompts-file docs/evidence/unseen-prompts.csv --seed 5000

The rule was fixed before anything was measured on the list:

1. A prompt is a simple sentence (one object, no size, speed, background or camera) of the tuning share, which no
   shipped model was trained on in any words. Exactly one of its phrases is a synonym ("a red disc rolls right"):
   the canonical sentences were used for tuning.
2. Prompts among the captions of validation clips, which choose the best checkpoint of a run, are left out.
3. Shapes take turns. Of a shape's prompts, the next one has a combination of colour, outline and motion that no list
   of tuning prompts has, if any is left, then the motion, colour and kind of synonym used least so far, then the least
   hash. No combination occurs twice.
4. Clips have the seeds 5000 to 5063. Settings were chosen on clips of the seeds 0 to 127, 1000 to 1063 and small ones.

``check`` draws the captions of every run of `kinema train --shipped`, and for zoetrope those of the seeds and shares of
the full grammar that its card names, and writes their numbers and digests to unseen-prompts.json.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measuring import EVIDENCE, write
from kinema import registry
from kinema.data.playroom import COLOURS, LETTERS, MOTIONS, SHAPES, Meaning, Playroom, parse, phrase, prompts
from kinema.data.playroom.grammar import (
    COLOUR_WORDS,
    SHAPE_WORDS,
    VERB_WORDS,
    WAY_WORDS,
    combinations,
    direction_of,
    in_split,
)
from kinema.data.playroom.rendered import Rendered
from kinema.training.options import TrainOptions
from kinema.training.setup import VALIDATION_BATCHES, prepare

COUNT, SEED = 64, 5000
LIST, CAPTIONS = EVIDENCE / "unseen-prompts.csv", EVIDENCE / "unseen-prompts.json"
SAMPLE = 500
"""Captions of each run whose digest a test compares."""
ZOETROPE_SEEDS, ZOETROPE_CLIPS, ZOETROPE_EARLY = (0, 3, 4, 5), 228_448, 609 * 16
"""Seeds of zoetrope's training, all of its clips, and those before step 609, of which one in four was of the full
grammar (src/kinema/families/zoetrope/README.md). Each seed is drawn for all clips, though it was used for some."""
TUNING = ((128, 0), (64, 1000))
"""Lists of tuning prompts by number and seed on which settings were chosen or scores were printed."""


@dataclass(frozen=True)
class TrainingRun:
    """The captions of one training run: those of training clips, and those of validation."""

    name: str
    how: Playroom
    seed: int
    clips: int
    batch: int
    every_fourth: int = 0
    """Of the first clips, this many have one in four of the full grammar instead of one in eight."""

    def captions(self, limit: int | None = None) -> Iterator[str]:
        clips = Rendered(16, 64, 64, how=self.how, seed=self.seed)
        full = Rendered(16, 64, 64, how=replace(self.how, grammar="full"), seed=self.seed)
        for index in range(min(self.clips, limit or self.clips)):
            yield clips.caption(index)
            if index < self.every_fourth and index % 8 == 3:
                yield full.caption(index)

    def validation(self) -> set[str]:
        clips = Rendered(16, 64, 64, how=replace(self.how, split="tuning"), seed=self.seed + 1)
        return {clips.caption(index) for index in range(VALIDATION_BATCHES * self.batch)}


def training_runs() -> list[TrainingRun]:
    """Every run of `kinema train --shipped`, and zoetrope's own history."""
    found = []
    for family, target in registry.SHIPPED.items():
        shipped = registry.resolve(target)
        # Runs start from files of other runs; the shipped file that these led to has the same settings.
        ends = {leg: next(f for f in shipped.files if leg in shipped.towards(f)) for leg in shipped.legs}
        for leg, run in shipped.legs.items():
            options = TrainOptions(**run.filled(ends))
            settings = prepare(options, lambda _: None).settings
            found.append(
                TrainingRun(
                    f"{family} {leg}",
                    settings.playroom or Playroom(),
                    options.seed,
                    settings.steps * settings.batch * (1 + settings.images),
                    settings.batch,
                )
            )
    how = Playroom("mixed", split="train-v1")
    for seed in ZOETROPE_SEEDS:
        early = ZOETROPE_EARLY if seed == 0 else 0
        found.append(TrainingRun(f"zoetrope as trained, seed {seed}", how, seed, ZOETROPE_CLIPS, 16, early))
    return found


def tuning_prompts() -> set[str]:
    return {prompt for count, seed in TUNING for prompt in prompts(count, seed, "simple", "tuning")}


def validation_captions(runs: Iterable[TrainingRun]) -> set[str]:
    return set().union(*(run.validation() for run in runs))


# ------------------------------------------------------------------------------------------ the list


@dataclass(frozen=True)
class Candidate:
    """A prompt with its meaning, the kind of its synonym, and whether a list of tuning prompts has its combination."""

    prompt: str
    meaning: Meaning
    synonym: str
    tuned: bool

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()


def candidates(tuning: set[str], validation: set[str]) -> list[Candidate]:
    """All prompts of points 1 and 2 of the rule."""
    tuned = {each for prompt in tuning for each in combinations(_meaning(prompt))}
    found = []
    for shape in SHAPES:
        for letter in LETTERS if shape == "letter" else (None,):
            for colour in COLOURS:
                for motion in MOTIONS:
                    meaning = Meaning(colour, shape, motion, letter, direction_of(motion))
                    if in_split(meaning, "tuning"):
                        known = bool(tuned & set(combinations(meaning)))
                        found += [Candidate(text, meaning, kind, known) for kind, text in reworded(meaning)]
    return [each for each in found if each.prompt not in tuning | validation]


def reworded(meaning: Meaning) -> Iterator[tuple[str, str]]:
    """The sentences of a simple meaning with one phrase replaced: the kind of phrase, and the sentence."""
    colour, glyph = meaning.colour, f"{meaning.shape} {meaning.letter or ''}".strip()
    verb, way = meaning.motion.split(" ")[0], meaning.direction
    canonical = phrase(meaning)
    for kind, words, name in (
        ("colour", COLOUR_WORDS, colour),
        ("shape", SHAPE_WORDS, meaning.shape),
        ("verb", VERB_WORDS, verb),
        ("way", WAY_WORDS, way),
    ):
        for other in words[name][1:] if name else ():
            said = {"colour": colour, "shape": glyph, "verb": verb, "way": way or ""}
            said[kind] = glyph.replace(meaning.shape, other, 1) if kind == "shape" else other
            article = "an" if said["colour"][0] in "aeiou" else "a"
            sentence = " ".join([article, *said.values()]).strip()
            assert sentence != canonical
            assert parse(sentence) == meaning
            yield kind, sentence


def selected(pool: list[Candidate], count: int = COUNT) -> list[Candidate]:
    """Point 3 of the rule."""
    used: Counter[str] = Counter()
    taken: set[tuple[str, str, str]] = set()
    found: list[Candidate] = []

    def order(each: Candidate) -> tuple[bool, int, int, int, str]:
        m = each.meaning
        return each.tuned, used[m.motion], used[m.colour], used[each.synonym], each.digest

    for i in range(count):
        free = [
            each
            for each in pool
            if each.meaning.shape == SHAPES[i % len(SHAPES)] and not taken & {*combinations(each.meaning)}
        ]
        best = min(free, key=order)
        found.append(best)
        taken |= {*combinations(best.meaning)}
        used.update([best.meaning.motion, best.meaning.colour, best.synonym])
    return found


def text_of(found: Iterable[Candidate]) -> str:
    """The list as csv: ``trained`` is whether training of a shipped model could draw the combination in any words,
    ``tuned`` whether a list of tuning prompts has it in canonical ones."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["prompt", "colour", "outline", "motion", "synonym", "trained", "tuned"])
    for each in found:
        m = each.meaning
        trained = "yes" if in_split(m, "train-v1") else "no"
        outline = m.letter or m.shape
        table.writerow([each.prompt, m.colour, outline, m.motion, each.synonym, trained, "yes" if each.tuned else "no"])
    return out.getvalue()


def listed(path: Path = LIST) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["prompt"] for row in csv.DictReader(file)]


# --------------------------------------------------------------------------------------------- check


def digest_of(captions: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()


def check(runs: Iterable[TrainingRun], unseen: set[str]) -> dict[str, dict[str, object]]:
    """Numbers and digests of each run's captions. Raises SystemExit if an unseen prompt is among them."""
    result: dict[str, dict[str, object]] = {}
    for run in runs:
        different = set(run.captions())
        if seen := sorted(different & unseen):
            raise SystemExit(f"{run.name} reads {len(seen)} of the prompts, such as {seen[0]!r}")
        result[run.name] = {
            "captions": run.clips,
            "different": len(different),
            "validation": len(run.validation()),
            "digest_of_first": digest_of(run.captions(SAMPLE)),
            "digest": digest_of(sorted(different)),
        }
        print(f"{run.name}: {run.clips:,} captions, {len(different):,} different, none of the list", flush=True)
    return result


def _meaning(prompt: str) -> Meaning:
    meaning = parse(prompt)
    assert meaning is not None
    return meaning


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("print", "write", "check"), default="print")
    options = parser.parse_args()
    runs = training_runs()
    text = text_of(selected(candidates(tuning_prompts(), validation_captions(runs))))
    sys.stdout.write(text)
    if options.what == "write":
        LIST.write_text(text, encoding="utf-8")
    elif options.what == "check":
        if text != LIST.read_text(encoding="utf-8"):
            raise SystemExit(f"{LIST} is not what the rule gives")
        write(CAPTIONS, {"command": "python -m benchmarks.unseen_prompts check", "runs": check(runs, {*listed()})})
    return 0


if __name__ == "__main__":
    sys.exit(main())
