"""Run the command line: ``python -m lt_core.cli``, which is what ``lt`` does."""

import sys

from lt_core.run.program import main

if __name__ == "__main__":
    sys.exit(main())
