"""Strategies whose forward, weights and release need every rank: nothing of it is asked of one rank alone."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule
from lt_core.callbacks import OnExceptionCheckpoint
from lt_interface import Logger
from lt_interface.testing import StrategyConformance
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

SECONDS = 6.0
JOB = Job(epochs=1)


def meet(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks, past all that the strategy knows of failures."""
    found = tensor.detach().clone()
    dist.all_reduce(found)
    return found


def _gathered(layer: nn.Module, args: Any) -> None:
    meet(torch.zeros(1))


class _Weights:
    """Weights that lie in parts on the ranks."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        return {name: meet(value) / dist.get_world_size() for name, value in self.module.state_dict().items()}

    def load_state_dict(self, state: Any, /, strict: bool = True, assign: bool = False) -> Any:
        return self.module.load_state_dict(state, strict=strict, assign=assign)


class Parted(DDPStrategy):
    """Strategy that meets the other ranks wherever fully sharded data parallelism does."""

    collective_forward = collective_weights = True

    def __init__(self) -> None:
        super().__init__(timeout=timedelta(seconds=2 * SECONDS))

    def shard(self, module: Any, precision: Any, loads_weights: bool) -> Any:
        module = super().shard(module, precision, loads_weights)
        if self.world.size > 1:
            module.layers.register_forward_pre_hook(_gathered)
        return module

    def weights(self, module: Any) -> Any:
        return _Weights(module) if self.world.size > 1 else module

    def release(self, module: Any, optimizers: Any) -> None:
        if self.world.size > 1:
            meet(torch.zeros(1))


class TestParted(StrategyConformance):
    timeout = 60.0

    def make(self) -> Any:
        return Parted()


def test_parts_that_are_not_declared_are_caught(tmp_path: Path) -> None:
    """A strategy whose weights need every rank, and that does not say so, fails the suite."""

    class Silent(Parted):
        collective_weights = False

    class TestSilent(StrategyConformance):
        timeout = 60.0

        def make(self) -> Any:
            return Silent()

    with pytest.raises(Exception, match=r"did not save alone|is not done|ended with exit code|after an error"):
        TestSilent().test_a_rank_that_failed_saves_alone(tmp_path)


def failing(kind: Any, rank: int) -> Any:
    """Return the job's module, whose training step on one rank is another one."""
    module: LightningModule = JOB.network()
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        return kind(step(batch, batch_idx)) if batch_idx == 2 and module.global_rank == rank else step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    return module


def outcomes(module: Any, **flags: Any) -> list[tuple[str, bool]]:
    """Train on two ranks; return what each raised, and whether it ended soon."""

    def job(rank: int) -> tuple[str, bool]:
        trainer = JOB.trainer(2, strategy=Parted(), **flags)
        data, begun = JOB.data(rank, 2), time.monotonic()
        try:
            trainer.fit(module(), data, data[:2])
        except Exception as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - begun < SECONDS
        return "", time.monotonic() - begun < SECONDS

    JOB.network().configure_optimizers()
    return run_ranks(job, timeout=60.0)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.filterwarnings("ignore:OnExceptionCheckpoint")
def test_a_rank_that_failed_exchanges_nothing(who: int, tmp_path: Path) -> None:
    """After an error of one rank neither a checkpoint nor a release waits for the other, and both end soon."""

    def raises(loss: Tensor) -> Tensor:
        raise ValueError("no step here")

    saving = {"enable_checkpointing": True, "callbacks": [OnExceptionCheckpoint(tmp_path)]}
    found = outcomes(lambda: failing(raises, who), **saving)
    assert found[who] == ("ValueError: no step here", True)
    assert found[1 - who][0].startswith("RankFailedError")
    assert found[1 - who][1]
    assert [path.name for path in tmp_path.iterdir()] == [".runs"]


def test_a_graph_that_needs_every_rank_is_not_drawn() -> None:
    """A logger that draws the module's graph is passed over where its forward would wait for the other ranks."""

    class Drawing(Logger):
        name, version = "drawing", 0

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            """Forget it."""

        def log_graph(self, model: Any, input_array: Any = None) -> None:
            model.layers(torch.zeros(1, 4))

    assert outcomes(JOB.network, logger=Drawing()) == [("", True)] * 2


def test_an_anomaly_of_one_rank_is_raised_without_a_second_forward() -> None:
    """A loss that is not finite on one rank ends the run by an error, though a look at its source needs every rank."""
    found = outcomes(lambda: failing(lambda loss: loss * float("nan"), 1), detect_anomaly=True)
    assert "every rank must run forward equally often" in found[1][0]
    assert found[1][0].startswith("NonFiniteLossError")
    assert [soon for _, soon in found] == [True, True]
