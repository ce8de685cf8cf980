"""Entry point of the ``kinema`` command and of ``python -m kinema``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `kinema.cli.main` and return its exit code. Its import takes 0.2 s, during which Ctrl-C is handled here."""
    try:
        from kinema.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("kinema: interrupted before the command started\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
