"""Journal and senders against a list: whatever fails, dies, is resumed or begun anew, each record is there once."""

from __future__ import annotations

import csv
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from lt_core.journal import Journal
from lt_core.loggers import CSVLogger, Logger
from lt_core.tracking import sender
from lt_core.tracking.replay import replay
from lt_core.tracking.sender import Delivery

Entry = tuple[int, int, int]  # a record: its run, its step there, and how often the run was made otherwise


class Tracker:
    """What a server holds, whoever sent it: wall time and value, in the order of arrival."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []


class Remote(Logger):
    """Logger of a tracker that forgets nothing and can be asked; what was not saved dies with the process."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.buffer = tracker, []  # type: ignore[var-annotated]
        self.fault = ""

    def log_records(self, records: Any, unsure: bool = False) -> None:
        if self.fault == "away":
            raise ConnectionError("no route")
        known = {time for time, _ in (*self.tracker.rows, *self.buffer)}
        for record in records:
            assert unsure or record.time not in known, "it came a second time, and nobody said that it may be there"
            if record.time not in known:
                self.buffer.append((record.time, record.values["x"]))
        if self.fault == "reply lost":
            self.save()
            raise ConnectionError("no reply")

    def save(self) -> None:
        if self.fault == "full":
            self.buffer = []
            raise OSError("no room")
        self.tracker.rows += self.buffer
        self.buffer = []


class Deliveries(RuleBasedStateMachine):
    """One folder, its journal, a CSV file and a remote tracker, under all that may happen to them."""

    checkpoints = Bundle("checkpoints")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "version_0" / "metrics.journal"
        self.path.parent.mkdir()
        self.tracker, self.rows, self.runs = Tracker(), [], 0  # type: ignore[var-annotated]
        self.run = self.variant = 0
        self.acks: dict[Path, bytes] = {}
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")
        self.retry, sender.FIRST_RETRY_SECONDS = sender.FIRST_RETRY_SECONDS, 0.0

    @initialize()
    def first_run(self) -> None:
        """Begin in an empty folder."""
        self._open(fresh=True)
        self.log(1)

    def _open(self, fresh: bool, offset: int | None = None, step: int = 0) -> None:
        """Open the journal and start senders, as a call of the trainer does."""
        self.journal = Journal(self.path)
        if offset is not None:
            self.journal.resume(offset)
        elif fresh:
            self.journal.begin()
        self.senders = [
            Delivery(one, self.journal, None, inline=True, number=n, clock=lambda: step)
            for n, one in enumerate(self._made)
        ]
        for one in self.senders:
            one.start()
        self.acks = {path: path.read_bytes() for path in self.path.parent.glob("*.ack")}

    @property
    def _made(self) -> list[Any]:
        if not hasattr(self, "loggers"):
            self.loggers = [CSVLogger(self.folder, name="", version=0), Remote(self.tracker)]
        return self.loggers

    def _close(self, dies: bool) -> None:
        for one in self.senders:
            if dies:
                one._ack.close()
            else:
                one.stop("success", 1)
        self.journal.close()

    def _history(self) -> list[Entry]:
        return [entry for entry in self.rows if entry[0] == self.run]

    # ------------------------------------------------------------ what happens

    @rule(count=st.integers(1, 4))
    def log(self, count: int) -> None:
        """Log some steps, which are sent at once."""
        self.acks = {path: path.read_bytes() for path in self.path.parent.glob("*.ack")}
        for _ in range(count):
            entry = self.run, len(self._history()), self.variant
            self.rows.append(entry)
            self.journal.append("train", "step", entry[1], {"x": _value(entry), "epoch": 0})
        for one in self.senders:
            one.send()

    @rule(target=checkpoints)
    def save(self) -> Any:
        """Note where the run is, as a checkpoint does."""
        return self.run, self.journal.offset, self._history()

    @rule(fault=st.sampled_from(["", "away", "reply lost", "full"]))
    def trouble(self, fault: str) -> None:
        """Let the remote tracker fail from now on, or work again."""
        self.loggers[1].fault = fault

    @rule(name=st.sampled_from(["call", "run"]))
    def again(self, name: str) -> None:
        """Let the same loggers serve another call of the trainer, or another trainer in this process."""
        self._close(dies=False)
        if name == "run":
            self.runs += 1
            self.run, self.variant = self.runs, 0
        self._open(fresh=name == "run")

    @rule(checkpoint=checkpoints, otherwise=st.booleans(), dies=st.sampled_from(["", "dies", "last word lost"]))
    def resume(self, checkpoint: Any, otherwise: bool, dies: str) -> None:
        """Resume a checkpoint of any run, here or after a death, and go on as before or otherwise."""
        self._close(dies=bool(dies))
        if dies:
            self._die(lost="lost" in dies and self.run == checkpoint[0])
            self.loggers[0].join(0)
        self.run, offset, history = checkpoint
        gone = [entry for entry in history if entry not in self.rows]  # abandoned once, and the history again
        self.rows = [entry for entry in self.rows if entry[0] != self.run or entry in history] + gone
        self.variant += otherwise
        self._open(fresh=False, offset=offset, step=len(history))

    def _die(self, lost: bool) -> None:
        """Forget all that was in memory, and, where a kill came before it, the last acknowledgement."""
        fault = self.loggers[1].fault
        self.loggers = [CSVLogger(self.folder, name="", version=0), Remote(self.tracker)]
        self.loggers[1].fault = fault
        for path, data in self.acks.items() if lost else ():
            path.write_bytes(data)

    # ------------------------------------------------------------ what must be so

    @precondition(lambda self: hasattr(self, "senders"))
    @rule()
    def settle(self) -> None:
        """With all trouble over, the history, the file and the tracker hold each record once."""
        self.loggers[1].fault = ""
        for one in self.senders:
            assert one.flush(5)
        assert [record.values["x"] for record in self.journal.read()] == [_value(entry) for entry in self._history()]
        self._compare(self._history())

    def _compare(self, rows: list[Entry]) -> None:
        """Compare what file and tracker hold with what some runs have logged; of others they may lack something."""
        table, all_rows = Path(self.loggers[0].metrics_file_path), [_value(entry) for entry in self.rows]
        with table.open(encoding="utf-8") as file:
            found = [float(row["x"]) for row in csv.DictReader(file)]
        wanted = [_value(entry) for entry in rows]
        assert [value for value in found if value in wanted] == wanted
        assert len(set(found)) == len(found)
        assert set(found) <= set(all_rows)
        times = [time for time, _ in self.tracker.rows]
        assert len(set(times)) == len(times)
        assert set(wanted) <= {value for _, value in self.tracker.rows}
        assert not list(table.parent.glob("metrics-*.csv"))

    def teardown(self) -> None:
        if hasattr(self, "senders"):
            self.settle()
            self._close(dies=False)
            for one in replay(self.path, loggers=self.loggers):
                assert (one.left, one.reason) == (0, "")
            for run in range(self.runs + 1):
                self._compare([entry for entry in self.rows if entry[0] == run])
        sender.FIRST_RETRY_SECONDS = self.retry
        self.caught.__exit__(None, None, None)
        shutil.rmtree(self.folder)


def _value(entry: Entry) -> float:
    run, step, variant = entry
    return run * 1e6 + variant * 1e3 + step


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]


class TestDeliveries(Deliveries.TestCase):  # type: ignore[misc]
    """A short search, with every change."""

    settings = settings(max_examples=50, stateful_step_count=12, deadline=None, suppress_health_check=CHECKS)


@pytest.mark.slow
class TestDeliveriesAtLength(Deliveries.TestCase):  # type: ignore[misc]
    """A long search, now and then."""

    settings = settings(max_examples=500, stateful_step_count=25, deadline=None, suppress_health_check=CHECKS)
