"""The command ``kinema``, and ``python -m kinema`` where no script was put on the path."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit code of `kinema.cli.main`, whose own import takes a fifth of a second: Ctrl-C may come during it."""
    try:
        from kinema.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("kinema: interrupted; nothing was begun\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
