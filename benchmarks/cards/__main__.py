"""The figures of README and the model cards, each from the file that the text names: compare them, or fill them in.

    python -m benchmarks.cards check    # names every passage that is missing or differs from its file
    python -m benchmarks.cards write    # fills the files' figures into the passages

``tests/test_claims.py`` runs the check.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.cards.figures import ROOT
from benchmarks.cards.passages import every


def faults() -> list[str]:
    """What README and cards say otherwise than their files."""
    return [each for p in every() for each in p.faults((ROOT / p.document).read_text(encoding="utf-8"))]


def fill() -> None:
    for passage in every():
        path = ROOT / passage.document
        path.write_text(passage.filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "write"))
    if parser.parse_args().what == "write":
        fill()
    found = faults()
    print("\n".join(found) or "README and cards say what their files say.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
