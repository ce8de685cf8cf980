"""Progress output of the pocket benchmarks' training."""

from __future__ import annotations

from kinema.events import Event, Note, TrainStep


class TrainingProgress:
    """Prints training progress every twenty steps."""

    def __init__(self, name: str) -> None:
        self.name, self.recent = name, list[float]()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            print(f"{self.name}: {event.message}", flush=True)
        if not isinstance(event, TrainStep):
            return
        self.recent.append(event.loss)
        if event.index % 20 == 0 or event.index == event.total or event.validation is not None:
            mean = sum(self.recent) / len(self.recent)
            validation = "" if event.validation is None else f", held-out {event.validation:.4f}"
            line = f"step {event.index} of {event.total}, loss {mean:.4f}{validation}, {event.rate:.2f} clips/s"
            print(f"{self.name}: {line}", flush=True)
            self.recent.clear()
