"""Prompts of the U-Net: their syntax, textual-inversion embeddings, and encoding over the sampling steps."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from kinema.bounds import first_names, printable
from kinema.checkpoints.lora_use import LoraFile
from kinema.conditioning.clip_text import Tokenizer
from kinema.conditioning.prompts import a1111, embeddings
from kinema.conditioning.prompts.a1111 import Part
from kinema.conditioning.prompts.embeddings import IN_LORA
from kinema.conditioning.prompts.encoding import Encoder, Reading, encode
from kinema.conditioning.prompts.pieces import BREAK
from kinema.conditioning.prompts.rows import Row, Words, missing, pieces_of, rows_of
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import Note, OnEvent
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, PromptSyntax, Request
from kinema.spans import Spans
from kinema.system import OverSteps, Prompts
from kinema.values import counted, cut, quoted

OPTION = "embeddings"
SYNTAXES: tuple[PromptSyntax, ...] = ("a1111", "comfy", "plain")
_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------ requests


def texts_of(request: Request) -> list[str]:
    return [request.prompt, *request.prompt_spans.values(), request.negative_prompt]


def prompts_of(config: Config) -> Prompts:
    """How this model reads prompts."""
    return Prompts(SYNTAXES, partial(settled, config), (OPTION,))


def settled(config: Config, request: Request, loras: Sequence[LoraFile], on_event: OnEvent) -> Request:
    """Return the request with the embeddings that its prompts name: the files of a folder, and those in LoRAs.

    Raises BadRequest for an embedding in a LoRA that does not fit the model.
    """
    given, syntax = request.extra.get(OPTION), request.prompt_syntax or SYNTAXES[0]
    if given is not None and not isinstance(given, str | Mapping):
        return request  # `check` refuses it
    folder = given if isinstance(given, str) else None
    bundled = set[str]() if config.words else {name for file in loras for name in file.embeddings}
    if folder is not None and syntax == "plain":
        raise BadRequest("plain prompts cannot name embeddings: leave out --prompt-syntax plain or --embeddings")
    named = dict(given) if isinstance(given, Mapping) else {}
    if (folder is not None or bundled) and syntax != "plain":
        named = embeddings.named_in(texts_of(request), folder, syntax, bundled - named.keys()) | named
    if folder is not None and not any(file != IN_LORA for file in named.values()):
        on_event(Note("--embeddings is not used: no prompt names an embedding of that folder"))
    in_loras = [name for name, file in named.items() if file == IN_LORA]
    tables(config, dict.fromkeys(in_loras, IN_LORA), loras)
    for note in _notes(loras, in_loras):
        on_event(Note(note))
    extra = {name: value for name, value in request.extra.items() if name != OPTION}
    return replace(request, extra={**extra, OPTION: named} if named else extra)


def _notes(loras: Sequence[LoraFile], named: Collection[str]) -> Iterator[str]:
    """What of the embeddings in LoRAs has no effect."""
    for file in loras:
        where = printable(file.path.name, 100)
        if unnamed := [name for name in file.embeddings if name not in named]:
            count = counted(len(unnamed), "embedding")
            yield f"{where} contains {count} ({first_names(unnamed)}), not used: only the prompt can name embeddings"
        if any(key.endswith("_out") for name in file.embeddings if name in named for key in file.embeddings[name]):
            yield f"{where} has embeddings for the output of the text encoder, which are not used"


def files_of(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of embeddings, or the folder of a request that is not settled."""
    value = extra.get(OPTION, {})
    return tuple(x for x in value.values() if x != IN_LORA) if isinstance(value, Mapping) else (str(value),)


def check(config: Config, request: Request) -> None:
    """Raise BadRequest for prompts that cannot be read, and for embeddings of other models."""
    named = request.extra.get(OPTION, {})
    if not isinstance(named, Mapping) or not all(isinstance(x, str) for pair in named.items() for x in pair):
        raise BadRequest(f"embeddings is {quoted(named)}; expected a folder, or files by name")
    if named and config.words:
        raise BadRequest("this model reads whole words of its own vocabulary and takes no embeddings: leave them out")
    tables(config, {name: file for name, file in named.items() if file != IN_LORA})
    syntax = request.prompt_syntax or SYNTAXES[0]
    for text in texts_of(request):
        for part in {each.text for each in parts_of(text, syntax, request.steps or 1)}:
            if syntax != "plain" and (unknown := [x for x in embeddings.signs(part) if x not in named]):
                raise BadRequest(missing(unknown[0], named))
            pieces_of(syntax, part)


def tables(config: Config, named: Mapping[str, str], loras: Sequence[LoraFile] = ()) -> dict[str, list[Tensor]]:
    """The vectors of embeddings by name, for each text encoder; ``loras`` have those that are `IN_LORA`."""
    widths, longest = [size.width for size in config.text], min(size.length for size in config.text) - 2
    found = {}
    for name, file in named.items():
        if file != IN_LORA:
            found[name] = embeddings.vectors(file, widths, longest)
            continue
        lora = next((each for each in loras if name in each.embeddings), None)
        if lora is None:
            raise BadRequest(
                f"the embedding {printable(name, 60)} is in no LoRA of this request; expected one that has it"
            )
        where = f"the embedding {printable(name, 60)} in {printable(lora.path.name, 100)}"
        found[name] = embeddings.fitted(lora.embeddings[name], where, widths, longest)
    return found


# ------------------------------------------------------------------------------------------ encoding


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt over the steps: the context 1×L×C, and for SDXL the pooled embedding 1×P, of each part."""

    parts: Sequence[Part]
    contexts: Sequence[Tensor]
    """One for each different text, in the order of their first parts; so is ``pooled``."""
    pooled: Sequence[Tensor | None]

    @cached_property
    def numbers(self) -> list[int]:
        """The number of each part's text."""
        texts: dict[str, int] = {}
        return [texts.setdefault(part.text, len(texts)) for part in self.parts]

    def at(self, step: int) -> int:
        """The number of the text at a step, counted from 0."""
        return self.numbers[min(bisect_left(self.parts, step, key=lambda part: part.last), len(self.parts) - 1)]

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return self.contexts[0].shape[1]

    def zeros(self) -> Encoded:
        """Zeros of the same shapes."""
        pooled = [None if x is None else torch.zeros_like(x) for x in self.pooled]
        return replace(self, contexts=[torch.zeros_like(x) for x in self.contexts], pooled=pooled)

    def padded(self, length: int, empty: Tensor) -> Encoded:
        """Contexts of at least ``length`` tokens, padded with rows of the empty prompt (1×L×C)."""
        more = (length - self.length) // empty.shape[1]
        return replace(self, contexts=[torch.cat([x, *[empty] * more], dim=1) for x in self.contexts])


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """The encoded prompts of a request: those of its spans by text, of equal length, and the negative one."""

    spans: Spans
    positive: Mapping[str, Encoded]
    negative: Encoded

    def over_steps(
        self, levels: NoiseLevel, make: Callable[[Mapping[str, Tensor], Tensor | None], _T]
    ) -> _T | OverSteps:
        """The positive branch: ``make(contexts by text, pooled embedding)`` for each step at which a prompt changes."""
        first, prompts = self.spans.texts[0], self.positive

        def one(numbers: Sequence[int]) -> _T:
            at = dict(zip(prompts, numbers, strict=True))
            return make(
                {text: own.contexts[at[text]] for text, own in prompts.items()}, prompts[first].pooled[at[first]]
            )

        return over_steps(list(prompts.values()), levels, one)

    def negative_over_steps(self, levels: NoiseLevel, make: Callable[[Tensor, Tensor | None], _T]) -> _T | OverSteps:
        """The negative branch: ``make(context, pooled embedding)`` for each step at which the prompt changes."""
        own = self.negative
        return over_steps([own], levels, lambda at: make(own.contexts[at[0]], own.pooled[at[0]]))


def over_steps(each: Sequence[Encoded], levels: NoiseLevel, make: Callable[[Sequence[int]], _T]) -> _T | OverSteps:
    """``make(numbers of parts)`` for each step of these levels at which a prompt changes; once if none does."""
    steps = len(levels) - 1
    starts = sorted({0, *(part.last + 1 for own in each for part in own.parts if part.last + 1 < steps)})
    numbers = [tuple(own.at(start) for own in each) for start in starts]
    changes = [at for at in range(len(starts)) if at == 0 or numbers[at] != numbers[at - 1]]
    conditions = {key: make(key) for key in dict.fromkeys(numbers)}
    if len(changes) == 1:
        return conditions[numbers[0]]
    return OverSteps([conditions[numbers[at]] for at in changes], [starts[at] for at in changes], levels)


def parts_of(text: str, syntax: PromptSyntax, steps: int) -> list[Part]:
    """The texts of a prompt over the steps; only AUTOMATIC1111's changes."""
    return a1111.parts(text, steps) if syntax == "a1111" else [Part(steps, text)]


def _without_signs(text: str, syntax: PromptSyntax, steps: int) -> list[str]:
    parts = dict.fromkeys(part.text for part in parts_of(text, syntax, steps))
    return [piece.text for part in parts for piece in pieces_of(syntax, part) if piece is not BREAK]


class PromptEncoder:
    """Encodes the prompts of a request with a model's text encoders."""

    def __init__(  # noqa: PLR0917 (what a prompt is read with)
        self,
        model: AnimateDiff,
        config: Config,
        tokenizer: Tokenizer,
        request: Request,
        loras: Sequence[LoraFile] = (),
    ) -> None:
        self.tokenizer, self.steps = tokenizer, request.steps or 1
        self.syntax: PromptSyntax = request.prompt_syntax or SYNTAXES[0]
        named = tables(config, request.extra.get(OPTION, {}), loras)
        pads = (None, 0)  # OpenCLIP's tokenizer fills rows with "!", which is 0
        self.encoders = [
            Encoder(network, size, pad, {name: vectors[number] for name, vectors in named.items()})
            for number, (network, size, pad) in enumerate(zip(model.text_encoders, config.text, pads, strict=False))
        ]
        self.reading = Reading(int(request.extra.get("clip_skip", 1)) - 1, penultimate=len(self.encoders) > 1)
        counts = {name: len(vectors[0]) for name, vectors in named.items()}
        self.words = Words(tokenizer, min(size.length for size in config.text) - 2, counts)

    def encode(self, text: str) -> Encoded:
        """Encode a prompt: each different text of its schedule once."""
        parts = parts_of(text, self.syntax, self.steps)
        counts = Counter(part.text for part in parts)
        rows = [self.rows(each) for each in counts]
        found = encode(self.encoders, self.tokenizer, rows, self.syntax, self.reading, list(counts.values()))
        return Encoded(parts, *zip(*found, strict=True))

    def read(self, texts: Sequence[str]) -> list[str]:
        """The texts of prompts without signs, those of all steps in one."""
        return [" ".join(_without_signs(text, self.syntax, self.steps)) for text in texts]

    def rows(self, text: str) -> list[Row]:
        text = embeddings.without_sign(text, self.words.embeddings) if self.syntax == "a1111" else text
        return rows_of(self.syntax, text, self.words)

    def note_cut(self, text: str, on_event: OnEvent) -> None:
        """Report a plain prompt that is longer than a row."""
        if self.syntax == "plain" and (count := len(self.words.ids(text))) > self.words.size:
            on_event(
                Note(
                    f'the plain prompt "{cut(text.strip(), 40)}" has {count:,} tokens, of which the first '
                    f"{self.words.size} are used; --prompt-syntax a1111 or comfy uses all"
                )
            )
