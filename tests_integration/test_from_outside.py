"""Test that a package of somebody else's adds one plugin of each kind, and changes no line of ours."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from lt_core import Callback, LightningModule, Trainer
from lt_core.checkpoint import load_checkpoint
from lt_core.demos import BoringModel
from lt_interface import Logger, RankFailedError, World
from lt_interface.registry import rescan
from lt_interface.testing import (
    AcceleratorConformance,
    CheckpointIOConformance,
    CollectivesConformance,
    LauncherConformance,
    LoggerConformance,
    PrecisionConformance,
    StrategyConformance,
)

POINTS = """
[lt.loggers]
paper = outside_kit:PaperLogger
[lt.precisions]
32-rounded = outside_kit:RoundedPrecision
[lt.strategies]
loud = outside_kit:LoudStrategy
averaging = outside_ranks:AveragingStrategy
[lt.launchers]
pair = test_launched_ranks:PairLauncher
[lt.accelerators]
other = outside_kit:OtherAccelerator
[lt.checkpoint_io]
counting = outside_kit:CountingIO
[lt.profilers]
seconds = outside_kit:SecondsProfiler
"""
FILES = {"third_party.py": "outside_kit", "third_party_ranks.py": "outside_ranks"}


@pytest.fixture
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Install the package as pip would: a module and its metadata on the path."""
    site = tmp_path_factory.mktemp("site")
    info = site / "outside_kit-1.0.dist-info"
    info.mkdir(parents=True)
    for here, name in FILES.items():
        shutil.copy(Path(__file__).with_name(here), site / f"{name}.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-kit\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(POINTS, encoding="utf-8")
    sys.path.insert(0, str(site))
    rescan()
    yield importlib.import_module("outside_kit")
    sys.path.remove(str(site))
    for name in FILES.values():
        sys.modules.pop(name, None)
    rescan()


def trainer(**flags: Any) -> Trainer:
    """Return a quiet trainer of four steps."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"max_steps": 4, "logger": False, **quiet, **flags})


class Logs(BoringModel):
    """Module that logs each loss, and keeps what the batches held."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.seen.append(batch)
        output = super().training_step(batch, batch_idx)
        self.log("loss", output["loss"], on_step=True)
        return output


def test_a_logger_by_name_gets_every_record(kit: ModuleType) -> None:
    """A logger of another package is named in a flag and gets each step's value once."""
    run = trainer(logger="paper", log_every_n_steps=1)
    run.fit(Logs())
    lines = (Path(run.loggers[0].directory) / "lines").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [step for step, metrics in records if "loss" in metrics] == [0, 1, 2, 3]


def test_a_precision_by_name_converts_each_batch(kit: ModuleType) -> None:
    """A precision of another package is named in a flag and changes what the step gets."""
    model = Logs()
    trainer(precision="32-rounded").fit(model)
    assert model.seen
    assert all(torch.equal(batch, (batch * 100).round() / 100) for batch in model.seen)


def test_a_strategy_and_an_accelerator_by_name_run_the_fit(kit: ModuleType) -> None:
    """Both are named in flags; the trainer sets them up, asks for the engine and tears down."""
    run = trainer(strategy="loud", accelerator="other")
    run.fit(BoringModel())
    assert run.global_step == 4
    assert kit.LoudStrategy.calls == ["setup fit on other", "engine", "leave"]
    assert kit.OtherAccelerator.used == [torch.device("cpu")]


def test_a_checkpoint_store_writes_what_is_resumed_from(kit: ModuleType, tmp_path: Path) -> None:
    """A store given as a plugin writes the file, and another run resumes from it through the same store."""
    store = kit.CountingIO()
    first = trainer(plugins=store)
    first.fit(BoringModel())
    path = str(tmp_path / "own.ckpt")
    first.save_checkpoint(path)
    again = trainer(plugins=store, max_steps=6)
    again.fit(BoringModel(), ckpt_path=path)
    assert store.calls == [("save", path), ("load", path)]
    assert again.global_step == 6


def test_a_progress_bar_is_drawn(kit: ModuleType) -> None:
    """A subclass of ProgressBar among the callbacks takes the place of ours."""
    bar = kit.DotsBar()
    run = trainer(callbacks=[bar], enable_progress_bar=True)
    run.fit(BoringModel())
    assert bar.dots == "...."
    assert run.progress_bar_callback is bar


def test_a_trigger_saves_at_a_moment_of_its_own(kit: ModuleType, tmp_path: Path) -> None:
    """A callback that watches the loss saves when it falls; a function on a hook counts every second batch."""
    path, counted = tmp_path / "low.ckpt", []
    run = trainer(callbacks=[kit.SavesAtLoss(float("inf"), path)])
    run.on("train_batch_end", every=2)(lambda trainer: counted.append(trainer.global_step))
    run.fit(BoringModel())
    assert load_checkpoint(path)["global_step"] == 1
    assert counted == [2, 4]


def test_a_callback_sees_each_batch_and_keeps_its_state(kit: ModuleType, tmp_path: Path) -> None:
    """A callback's hooks run with each batch, and its state comes back from a checkpoint."""
    first, again = kit.CountsBatches(), kit.CountsBatches()
    run = trainer(callbacks=[first])
    run.fit(BoringModel())
    run.save_checkpoint(tmp_path / "counted.ckpt")
    trainer(callbacks=[again], max_steps=6).fit(BoringModel(), ckpt_path=tmp_path / "counted.ckpt")
    assert first.batches == 4
    assert again.batches == 6


def test_a_profiler_by_name_times_the_hooks(kit: ModuleType) -> None:
    """A profiler of another package is named in a flag and measures the hooks of a callback."""

    class Sleeper(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            torch.ones(1)

    run = trainer(profiler="seconds", callbacks=[Sleeper()])
    run.fit(BoringModel())
    [name] = [name for name in run.profiler.seconds if "on_train_batch_end" in name and "Sleeper" in name]
    assert run.profiler.seconds[name] > 0


class Shared(LightningModule):
    """Module of one's own optimizer, whose metrics are a mean over ranks and a metric object."""

    def __init__(self, optimizer: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.error = MeanSquaredError()
        self.chosen, self.options = optimizer, options

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.layers(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.error.update(self.layers(batch[0]), batch[1])
        self.log("error", self.error)

    def configure_optimizers(self) -> Any:
        return getattr(torch.optim, self.chosen)(self.layers.parameters(), lr=0.05, **self.options)


def loader(length: int, batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
    """Return a loader of fixed samples."""
    x = torch.randn(length, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size, shuffle=shuffle)


FITS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "uneven": (33, {"optimizer": "SGD", "momentum": 0.9}, {}),
    "clipped-window": (70, {"optimizer": "AdamW"}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}),
    "by-closure": (32, {"optimizer": "LBFGS", "line_search_fn": "strong_wolfe"}, {}),
}


@pytest.mark.parametrize("case", FITS.values(), ids=list(FITS))
@pytest.mark.usefixtures("kit")
def test_ranks_by_name_are_one_training(case: tuple[int, dict[str, Any], dict[str, Any]]) -> None:
    """Two ranks of a foreign strategy, which its own launcher starts, fit and measure as one process does."""
    length, options, flags = case

    def trained(size: int, **more: Any) -> tuple[Any, ...]:
        model = Shared(**options).double()
        run = trainer(max_steps=-1, max_epochs=2, accelerator="cpu", devices=size, **more, **flags)
        torch.manual_seed(7)
        run.fit(model, loader(length, 16 // size, shuffle=True), loader(13, 8 // size))
        logged = {name: float(value) for name, value in run.callback_metrics.items()}
        measured = dict(*run.validate(model, loader(13, 8 // size), verbose=False))
        return model.layers.state_dict(), {**logged, "again": measured["error"]}, run.global_step

    expected, found = trained(1), trained(2, strategy="averaging")
    torch.testing.assert_close(found[0], expected[0], rtol=0.0, atol=1e-9)
    assert found[1] == pytest.approx(expected[1])
    assert found[2] == expected[2]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.usefixtures("kit")
def test_a_failed_rank_ends_the_others(who: int) -> None:
    """An error of one rank of a foreign strategy ends the other one by an error that names rank, step and hook."""

    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1 and trainer.global_rank == who:
                raise ValueError("no more")

    run = trainer(strategy="averaging", accelerator="cpu", devices=2, callbacks=[Fails()])
    with pytest.raises((ValueError, RankFailedError)) as caught:
        run.fit(Shared("SGD").double(), loader(64, 8), loader(8, 8))
    if who == 0:
        assert str(caught.value) == "no more"
    else:
        assert "rank 1, fit, step 2, in on_train_batch_end: ValueError('no more')" in str(caught.value)


@pytest.mark.usefixtures("kit")
class TestAccelerator(AcceleratorConformance):
    plugin = "other"


@pytest.mark.usefixtures("kit")
class TestStrategy(StrategyConformance):
    plugin = "loud"


@pytest.mark.usefixtures("kit")
class TestRanks(StrategyConformance):
    plugin = "averaging"


@pytest.mark.usefixtures("kit")
class TestExchange(CollectivesConformance):
    def make(self) -> Any:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return importlib.import_module("outside_ranks").exchange_of(World(rank=rank, size=size))


@pytest.mark.usefixtures("kit")
class TestLauncher(LauncherConformance):
    plugin = "pair"
    processes = 2


@pytest.mark.usefixtures("kit")
class TestStore(CheckpointIOConformance):
    plugin = "counting"


@pytest.mark.usefixtures("kit")
class TestLogger(LoggerConformance):
    plugin = "paper"

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        path = Path(str(logger.directory)) / "lines"
        for step, metrics in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
            for name, value in metrics.items():
                assert step not in found.setdefault(name, {}), f"{name}: a step twice"
                found[name][step] = value
        return found


@pytest.mark.usefixtures("kit")
class TestPrecision(PrecisionConformance):
    plugin = "32-rounded"
    tolerance = 0.1
