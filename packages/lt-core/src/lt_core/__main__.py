"""Print what is installed, which plugins and devices there are, for bug reports: ``python -m lt_core``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lt_core.run.environment import describe
from lt_core.version import __version__

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the description, or the version alone.

    Args:
        arguments: The command line; the process's own if None.
    """
    parser = argparse.ArgumentParser(prog="python -m lt_core", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lt-core {__version__}")
    parser.parse_args(arguments)
    print(describe())


if __name__ == "__main__":
    main()
