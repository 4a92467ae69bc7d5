"""Loggers that are mocks, proxies, or patched by a program get each record by log_metrics, and leave nothing behind."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock, create_autospec, patch

import pytest
import torch
from quiet import SILENT, Sized
from torch import nn

from lt_core import Trainer
from lt_core.loggers import CSVLogger, Logger

DATA = [torch.full((1, 1), float(v)) for v in range(4)]


class Proxy:
    """Object that hands every question to a logger."""

    def __init__(self, logger: Any) -> None:
        self._inner = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def fit(logger: Any, folder: Path) -> Trainer:
    trainer = Trainer(**SILENT, logger=logger, max_epochs=1, log_every_n_steps=1, default_root_dir=folder)
    trainer.fit(Sized(), DATA)
    return trainer


MOCKS: dict[str, Callable[[], Any]] = {
    "Mock": Mock,
    "MagicMock": MagicMock,
    "of the base": lambda: Mock(spec=Logger),
    "of the CSV logger": lambda: MagicMock(spec=CSVLogger),
    "of an object": lambda: Mock(spec=CSVLogger("nowhere")),
    "autospec": lambda: create_autospec(Logger, instance=True),
    "named": lambda: MagicMock(name="n", version=3, save_dir=None, log_dir=None),
}


@pytest.mark.parametrize("kind", list(MOCKS))
def test_mocks_are_asked_as_any_logger(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit and test with checkpoints work, the calls are there by the usual names, and no folder is named so."""
    monkeypatch.chdir(tmp_path)
    logger = MOCKS[kind]()
    trainer = fit([logger] if kind == "Mock" else logger, tmp_path)
    assert [(call.kwargs["step"], call.kwargs["metrics"]["x"]) for call in logger.log_metrics.call_args_list] == [
        (step, float(step)) for step in range(4)
    ]
    logger.log_hyperparams.assert_called_once()
    ended = logger.finalize if logger.finalize.called else logger.finish
    assert ended.call_args.args == ("success",)
    assert logger.after_save_checkpoint.called
    trainer.test(Sized(), DATA, verbose=False)
    assert logger.log_metrics.call_count == 5
    made = [name for _, folders, files in os.walk(tmp_path) for name in (*folders, *files)]
    assert not [name for name in made if "mock" in name.lower()]
    assert any(name.endswith(".ckpt") for name in made)


def test_a_patched_method_is_called(tmp_path: Path) -> None:
    """log_metrics that was replaced on the object, or on the class, gets what the trainer logs."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics = Mock()  # type: ignore[method-assign]
    fit(logger, tmp_path)
    assert [call.kwargs["step"] for call in logger.log_metrics.call_args_list] == [0, 1, 2, 3]
    with patch.object(CSVLogger, "log_metrics") as replaced:
        fit(CSVLogger(tmp_path), tmp_path)
    assert replaced.call_count == 4


def test_an_overridden_log_metrics_sees_every_record(tmp_path: Path) -> None:
    """A subclass that filters or renames in log_metrics does so for what the trainer logs, in fit and in test."""

    class Renamed(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            super().log_metrics({f"my/{key}": value for key, value in metrics.items() if key != "epoch"}, step)

    logger = Renamed(tmp_path)
    fit(logger, tmp_path).test(Sized(), DATA, verbose=False)
    with open(logger.metrics_file_path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["my/x"] for row in rows] == ["0.0", "1.0", "2.0", "3.0", ""]
    assert (rows[-1]["my/y"], "epoch" in rows[0]) == ("1.5", False)


def test_a_proxy_logs_like_what_it_stands_for(tmp_path: Path) -> None:
    """An object that answers by __getattr__ writes its logger's file."""
    inner = CSVLogger(tmp_path, name="p")
    trainer = fit(Proxy(inner), tmp_path)
    assert trainer.log_dir == inner.log_dir
    with open(inner.metrics_file_path, encoding="utf-8") as file:
        assert [row["x"] for row in csv.DictReader(file)] == ["0.0", "1.0", "2.0", "3.0"]


def test_the_base_does_nothing_where_it_is_asked_to() -> None:
    """Every logger has log_graph, after_save_checkpoint, save and finalize, which programs call."""
    logger = Logger()
    logger.log_graph(nn.Linear(1, 1))
    logger.log_graph(model=nn.Linear(1, 1), input_array=torch.zeros(1, 1))
    logger.after_save_checkpoint(None)
    logger.save()
    logger.finalize("success")


def test_a_call_after_the_fit_is_made_at_once(tmp_path: Path) -> None:
    """logger.later makes its call before it returns where no run feeds the logger: before a fit and after it."""
    logger, made = CSVLogger(tmp_path), []  # type: ignore[var-annotated]
    logger.later(lambda: made.append("before"), "a")
    assert made == ["before"]
    trainer = fit(logger, tmp_path)
    logger.later(lambda: made.append("after"), "b")
    assert made == ["before", "after"]
    logger.log_metrics({"z": 1.0}, 9)
    logger.save()
    assert "9" in Path(logger.metrics_file_path).read_text().splitlines()[-1].split(",")
    assert trainer.loggers == [logger]
