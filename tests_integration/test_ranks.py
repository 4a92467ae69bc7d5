"""Train on real ranks through the core's own loop, and catch strategies that do it wrong."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPEngine, DDPStrategy
from lt_core import Callback, LightningModule, Trainer
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.utilities import rank_zero_only
from lt_interface import ConfigError, MisconfigurationException
from lt_interface.testing import StrategyConformance
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class TestDDPOnRanks(StrategyConformance):
    def make(self) -> Any:
        return DDPStrategy()


class _Engine(DDPEngine):
    """Let a test break the engine in one place."""

    changes: dict[str, Any] = {}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for name, value in self.changes.items():
            setattr(self, name, value(self))


class _Strategy(DDPStrategy):
    changes: dict[str, Any] = {}

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        engine = type("Broken", (_Engine,), {"changes": self.changes})
        return engine(default(module, optimizers, schedulers, precision, plan), module, self)


def _never_exchanges(engine: Any) -> Any:
    return engine._inner.backward


def _exchanges_only_inside_a_window(engine: Any) -> Any:
    return lambda last: engine._alone if last else None


def _steps_twice(engine: Any) -> Any:
    return lambda index, last, closure=None: engine._inner.update(index, last) and engine._inner.update(index, last)


def _clips_by_half(engine: Any) -> Any:
    return lambda index, value, algorithm: engine._inner.clip(index, value / 2, algorithm)


def _claims_to_accumulate(engine: Any) -> Any:
    return frozenset({"accumulate"})


@pytest.mark.parametrize(
    ("changes", "job"),
    [
        ({"backward": _never_exchanges}, Job()),
        ({"window": _exchanges_only_inside_a_window}, Job(accumulate=2)),
        ({"update": _steps_twice}, Job()),
        ({"clip": _clips_by_half}, Job(clip=0.05)),
        ({"owns": _claims_to_accumulate}, Job(accumulate=2)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the same weights")  # they drift on purpose
def test_wrong_training_is_caught(changes: dict[str, Any], job: Job) -> None:
    """A strategy that exchanges, steps or clips wrongly fails the suite's comparison with one process."""
    suite: Any = type("TestBroken", (StrategyConformance,), {"make": lambda self: _Strategy(), "timeout": 30.0})()
    _Strategy.changes = changes
    try:
        with pytest.raises(AssertionError):
            suite.test_ranks_train_as_one(job)
    finally:
        _Strategy.changes = {}


def test_forgotten_buffers_are_caught() -> None:
    """A strategy that leaves each rank its own running means fails the suite's comparison of ranks."""
    suite: Any = type("TestBroken", (StrategyConformance,), {"make": lambda self: _Strategy()})()
    _Strategy.changes = {"boundary": lambda engine: None}
    try:
        with pytest.raises(AssertionError):
            suite.test_ranks_keep_one_module()
    finally:
        _Strategy.changes = {}


class _Meeting(DDPStrategy):
    """Strategy whose forward is collective: each one meets the other ranks'."""

    collective_forward = True

    def engine(self, *args: Any, **kwargs: Any) -> Any:
        engine: Any = super().engine(*args, **kwargs)
        engine.before_forward = lambda: self.collectives.any(False)
        return engine


class _Incomplete(DDPStrategy):
    """Strategy whose engine cannot skip a batch."""

    def engine(self, *args: Any, **kwargs: Any) -> Any:
        engine: Any = super().engine(*args, **kwargs)
        return _WithoutZero(engine)


class _WithoutZero:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        if name == "zero_loss":
            raise AttributeError(name)
        return getattr(self._engine, name)


@pytest.mark.parametrize("strategy", [DDPStrategy, _Meeting, _Incomplete])
def test_a_rank_that_skips_a_batch_makes_none_wait(strategy: Any) -> None:
    """A rank whose loss is None counts as zero; where ranks compute together, the run ends with the error about it."""
    suite: Any = type("TestSkipping", (StrategyConformance,), {"make": lambda self: strategy(), "timeout": 40.0})()
    suite.test_a_rank_may_skip_a_batch_or_is_refused()


class Gan(LightningModule):
    """Generator and discriminator with an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.automatic_optimization = False
        self.nets = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 1)])

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Step the generator by the discriminator's judgement, then the discriminator."""
        make, judge = self.nets
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(judge(make(batch[0])).square().mean())
        first.step()
        self.untoggle_optimizer(first)
        second.zero_grad()
        self.manual_backward((judge(make(batch[0]).detach()) - judge(batch[0]) - 1).square().mean())
        second.step()

    def configure_optimizers(self) -> Any:
        """Return one optimizer for each."""
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]


def test_two_optimizers_train_as_one_process() -> None:
    """A module with two optimizers trains on two ranks as in one process, without an option of the strategy."""

    def train(size: int, **flags: Any) -> list[float]:
        data = TensorDataset(torch.randn(48, 3, generator=torch.Generator().manual_seed(5)))
        net = Gan()
        Job().trainer(size, use_distributed_sampler=True, **flags).fit(net, DataLoader(data, 8 // size))
        return [value for p in net.parameters() for value in p.flatten().tolist()]

    for found in run_ranks(lambda rank: train(2, strategy=DDPStrategy()), timeout=60.0):
        assert found == pytest.approx(train(1), abs=1e-6)


def test_ranks_that_were_started_by_hand_train_together() -> None:
    """Processes with RANK, WORLD_SIZE and MASTER_ADDR set by hand are the ranks of a strategy for as many."""

    def rank(number: int) -> Any:
        data = TensorDataset(torch.ones(8, 3))
        made = Trainer(strategy="ddp", devices=2, max_epochs=1, accelerator="cpu", **QUIET)
        made.fit(Gan(), DataLoader(data, 2))
        with pytest.raises(ConfigError, match=r"Got 3 processes, and WORLD_SIZE=2 in the environment"):
            Trainer(strategy="ddp", devices=3, max_epochs=1, accelerator="cpu", **QUIET).fit(Gan(), DataLoader(data, 2))
        return made.global_rank, made.world_size, made.global_step

    assert run_ranks(rank, timeout=60.0) == [(0, 2, 2), (1, 2, 2)]


def test_ranks_that_each_train_alone_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RANK and WORLD_SIZE are set by hand, a trainer of one process warns once, saying what to write."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def alone(where: dict[str, str], **flags: Any) -> list[str]:
        data = DataLoader(TensorDataset(torch.ones(4, 3)), 2)
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for name, value in where.items():
                patch.setenv(name, value)
            made = Trainer(accelerator="cpu", max_epochs=1, **{**QUIET, **flags})
            made.fit(Gan(), data)
        assert (made.world_size, made.global_step) == (1, 2)
        return [str(one.message) for one in seen if "trains alone" in str(one.message)]

    hand = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    for flags in ({}, {"devices": 1}, {"strategy": "single_device"}, {"strategy": SingleDeviceStrategy()}):
        (line,) = alone(hand, **flags)
        assert "Got RANK=0, WORLD_SIZE=4 in the environment" in line
        assert 'Trainer(strategy="ddp", devices=4)' in line
    (line,) = alone({**hand, "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    assert 'Trainer(strategy="ddp", devices=2, num_nodes=2)' in line
    assert len(alone({"LOCAL_RANK": "0", "WORLD_SIZE": "2"})) == 1
    for unrelated in ({}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": ""}):
        assert alone(unrelated) == []
    with monkeypatch.context() as patch:
        for name, value in hand.items():
            patch.setenv(name, value)
        with pytest.raises(MisconfigurationException, match=r"Got 1 process, and WORLD_SIZE=4"):
            Trainer(strategy="ddp", devices=1, accelerator="cpu", max_epochs=1, **QUIET).fit(Gan(), [torch.ones(2, 3)])


def test_verbs_of_strategy_trainer_and_module_know_the_ranks(capfd: pytest.CaptureFixture[str]) -> None:
    """Inside a hook each verb that users know answers for this rank, or exchanges with the others."""

    def rank(number: int) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def look(trainer: Any, net: Any) -> None:
            strategy, own = trainer.strategy, trainer.global_rank
            found["ranks"] = strategy.global_rank, strategy.local_rank, strategy.node_rank, rank_zero_only.rank
            found["sizes"] = strategy.world_size, strategy.num_processes, trainer.world_size, trainer.num_devices
            found["trainer"] = own, trainer.local_rank, trainer.node_rank, trainer.num_nodes, trainer.device_ids
            found["zero"] = strategy.is_global_zero, trainer.is_global_zero, str(strategy.root_device)
            found["decisions"] = [strategy.reduce_boolean_decision(own == 0, all=every) for every in (True, False)]
            found["broadcast"] = strategy.broadcast({"from": own}, src=1)
            value = torch.tensor(own + 1.0)
            found["reduced"] = [float(strategy.reduce(value, reduce_op=op)) for op in ("mean", "sum", "max")]
            found["gathered"] = strategy.all_gather(value).tolist()
            found["only"] = rank_zero_only(lambda: "written")()
            strategy.barrier("here")
            net.print("printed once")
            weight = torch.tensor([own + 1.0], requires_grad=True)
            gathered = net.all_gather(weight, sync_grads=True)
            (gathered * torch.tensor([[1.0], [10.0]]) * (own + 1)).sum().backward()
            found["gradient"] = weight.grad.tolist()  # type: ignore[union-attr]

        data = DataLoader(TensorDataset(torch.ones(8, 3)), 2)
        callback = type("Looking", (Callback,), {"on_train_start": lambda self, *args: look(*args)})()
        Trainer(strategy="ddp", devices=2, max_epochs=1, accelerator="cpu", callbacks=[callback], **QUIET).fit(
            Gan(), data
        )
        return found

    for number, found in enumerate(run_ranks(rank, timeout=60.0)):
        assert found["ranks"] == (number, number, 0, number)
        assert found["sizes"] == (2, 2, 2, 2)
        assert found["trainer"] == (number, number, 0, 1, [0, 1])
        assert found["zero"] == (number == 0, number == 0, "cpu")
        assert found["decisions"] == [False, True]
        assert found["broadcast"] == {"from": 1}
        assert found["reduced"] == [1.5, 3.0, 2.0]
        assert found["gathered"] == [1.0, 2.0]
        assert found["only"] == (None if number else "written")
        assert found["gradient"] == [3.0 * 10**number]  # of both ranks' losses
    assert capfd.readouterr().out.count("printed once") == 1
