"""The `diffsel` command, and ``accelerate launch -m diffsel``."""

from __future__ import annotations

import sys


def main() -> None:
    from .cli.app import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
