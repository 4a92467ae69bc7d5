"""The suite for loggers passes a small logger with every ability, and catches one that breaks its word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lt_interface import DummyExperiment, Logger, Record, is_rank_zero, rank_zero_only
from lt_interface.testing import LoggerConformance


class Book(Logger):
    """Keep each value as a line, and ask the file what it has when in doubt."""

    def __init__(self, save_dir: str, number: int | None = None) -> None:
        self._root, self._number = save_dir, number

    name = "book"

    @property
    def version(self) -> int:
        with self.exclusive():
            while self._number is None:
                number = len(os.listdir(self._root))
                os.mkdir(os.path.join(self._root, str(number)))
                self._number = number
        return self._number

    @property
    def log_dir(self) -> str:
        return os.path.join(self._root, str(self.version))

    @property
    def experiment(self) -> Any:
        return self if is_rank_zero() else DummyExperiment()

    def lines(self) -> list[Any]:
        path = Path(self.log_dir, "book")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @rank_zero_only
    def log_records(self, records: Sequence[Record], unsure: bool = False) -> None:
        with self.exclusive():
            known = {line[2] for line in self.lines()} if unsure else set()
            with open(os.path.join(self.log_dir, "book"), "a") as file:
                for r in records:
                    if r.sequence not in known:
                        file.write(json.dumps([r.step, dict(r.values), r.sequence]) + "\n")

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.log_records([Record(-1, "train", "step", step or 0, 0.0, metrics)])

    def join(self, version: int | str) -> None:
        self._number = int(version)

    def replay_state(self) -> dict[str, Any]:
        return {"save_dir": self._root, "number": self.version}

    @classmethod
    def from_replay_state(cls, state: Any) -> Book:
        return cls(**state)

    def log_text(self, key: str, text: Any = None, *args: Any, step: int | None = None) -> None:
        Path(self.log_dir, f"{key}.txt").write_text(text)


class TestBook(LoggerConformance):
    made: type[Book] = Book

    def make_logger(self, folder: Path) -> Logger:
        return self.made(str(folder))

    def read(self, logger: Any) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for step, values, _ in logger.lines():
            for name, value in values.items():
                assert step not in found.setdefault(name, {}), f"{name}: step {step} twice"
                found[name][step] = value
        return found


def credulous(self: Book, records: Sequence[Record], unsure: bool = False) -> None:
    """Never ask what is there."""
    Book.log_records(self, records)


def forgetful(self: Book, records: Sequence[Record], unsure: bool = False) -> None:
    """Lose the last of many."""
    Book.log_records(self, records[:499], unsure)


def strangers(cls: type[Book], state: Any) -> Book:
    """Begin a run of its own."""
    return cls(state["save_dir"])


def loud(self: Book, metrics: Any, step: int | None = None) -> None:
    """Write on every rank."""
    Path(self._root, "loud").write_text("here")


def refuses(self: Book, key: str, text: Any = None, *args: Any, step: int | None = None) -> None:
    """Show nothing."""
    raise TypeError(key)


MUTANTS: list[tuple[str, dict[str, Any]]] = [
    ("test_records_come_back", {"log_records": forgetful}),
    ("test_resend_in_doubt_adds_nothing", {"log_records": credulous}),
    ("test_another_process_goes_on", {"from_replay_state": classmethod(strangers)}),
    ("test_another_process_goes_on", {"log_records": credulous}),
    ("test_joins", {"join": lambda self, version: None}),
    ("test_joins", {"log_records": lambda self, records, unsure=False: Book.log_records(self, records[1:], unsure)}),
    ("test_other_ranks_are_silent", {"log_metrics": loud}),
]


@pytest.mark.parametrize(("test", "changes"), MUTANTS)
def test_broken_word_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, changes: dict[str, Any]
) -> None:
    """A logger that loses, repeats, mixes runs up or writes on other ranks fails the test that says so."""
    suite = TestBook()
    suite.made = type("Mutant", (Book,), changes)
    arguments = [tmp_path, monkeypatch] if test == "test_other_ranks_are_silent" else [tmp_path]
    check: Callable[..., None] = getattr(suite, test)
    with pytest.raises((AssertionError, KeyError)):
        check(*arguments)


def test_refused_media_are_caught(tmp_path: Path) -> None:
    """A logger that has a method for a medium and does not take it fails."""
    suite = TestBook()
    suite.made = type("Mutant", (Book,), {"log_text": refuses})
    with pytest.raises(TypeError):
        suite.test_shows_media(tmp_path, "log_text")
