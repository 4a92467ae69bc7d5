"""The demos train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lt_core.demos import BoringDataModule, BoringModel, ManualOptimBoringModel, RandomDataset, RandomIterableDataset
from lt_core.demos.__main__ import main


def test_datasets() -> None:
    """The datasets have the size and number of vectors asked for; the iterable one is new each time."""
    data = RandomDataset(3, 5)
    assert (len(data), data[4].shape) == (5, (3,))
    stream = RandomIterableDataset(3, 5)
    first, second = list(stream), list(stream)
    assert len(first) == 5
    assert not torch.equal(first[0], second[0])


def test_boring_steps() -> None:
    """Each step of the boring model returns what its docstring says."""
    model = BoringModel()
    batch = next(iter(model.train_dataloader()))
    assert model.training_step(batch, 0)["loss"].requires_grad
    assert set(model.validation_step(batch, 0)) == {"x"}
    assert set(model.test_step(batch, 0)) == {"y"}
    (optimizer,), (scheduler,) = model.configure_optimizers()
    assert scheduler.optimizer is optimizer
    assert [len(loader()) for loader in (model.val_dataloader, model.test_dataloader, model.predict_dataloader)] == [
        64
    ] * 3
    assert not ManualOptimBoringModel().automatic_optimization


def test_boring_data_module_by_stage() -> None:
    """The data module has the data of a stage after setup for that stage."""
    data = BoringDataModule()
    data.prepare_data()
    for stage, names in {"fit": ["train", "val"], "test": ["test"], "predict": ["predict"]}.items():
        data.setup(stage)
        for name in names:
            assert len(getattr(data, f"{name}_dataloader")()) == 64


@pytest.mark.parametrize("arguments", [[], ["--manual"]])
def test_command_trains(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m lt_core.demos` trains a model to a lower loss, says so and leaves no file."""
    monkeypatch.chdir(tmp_path)
    losses: list[float] = [main([*arguments, "--epochs", n]) for n in ("1", "3")]
    assert losses[1] < losses[0] < 1.0
    text: Any = capsys.readouterr().out
    assert "192 steps in 3 epochs" in text
    assert not list(tmp_path.iterdir())
