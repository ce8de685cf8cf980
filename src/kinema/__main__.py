"""``python -m kinema``: the command line, where no script was put on the path."""

from __future__ import annotations

import sys

from kinema.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
