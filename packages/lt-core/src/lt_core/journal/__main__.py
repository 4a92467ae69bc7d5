"""Send from a run's journal what its loggers lack: ``python -m lt_core.journal replay RUN_DIR``."""

from __future__ import annotations

import argparse
import sys

from lt_core.tracking.replay import find_journal, pending, replay
from lt_interface.errors import LTError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if every logger has all, 1 if something is left, 2 for a wrong folder."""
    parser = argparse.ArgumentParser(prog="python -m lt_core.journal", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser("replay", help="send each logger what it lacks")
    send.add_argument("run_dir", help="the run's folder: the one that holds metrics.journal")
    send.add_argument("--timeout", type=float, default=60.0, help="seconds to try without progress (60)")
    show = commands.add_parser("status", help="print how many records each logger lacks; sends nothing")
    show.add_argument("run_dir", help="the run's folder")
    given = parser.parse_args(arguments)
    try:
        print(find_journal(given.run_dir))
        found = pending(given.run_dir) if given.command == "status" else replay(given.run_dir, timeout=given.timeout)
    except (LTError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for one in found:
        sent = f"{one.sent} records sent, " if given.command == "replay" else ""
        state = f"{one.left} left" if one.left else "complete"
        print(f"  {one.who}: {sent}{state}{'. ' + one.reason if one.reason else ''}")
    return int(any(one.left or one.reason for one in found))


if __name__ == "__main__":
    sys.exit(main())
