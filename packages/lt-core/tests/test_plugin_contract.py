"""What strategy, engine and precision are given, and when: the plan, the schedulers, the device, the module."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn

from lt_core import LightningModule, Trainer, seed_everything
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_interface import PlainCollectives, PlainPrecision, Plan, PluginError, World

BATCHES = list(torch.ones(6, 2, 3))


class Net(LightningModule):
    """Small network with a scheduler for each step and one for each epoch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("loss", loss := self.layer(batch).square().mean(), on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.by_step = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        self.by_second_step = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        self.by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        by_step = {"scheduler": self.by_step, "interval": "step"}
        every_second = {"scheduler": self.by_second_step, "interval": "step", "frequency": 2}
        return [optimizer], [by_step, every_second, self.by_epoch]


class Watched(SingleDeviceStrategy):
    """Strategy that keeps what it is given.

    Args:
        make: Makes an engine from the arguments of `Strategy.engine`, the default left out.
    """

    name = "watched"

    def __init__(self, make: Any = PlainEngine) -> None:
        super().__init__()
        self.make, self.plans, self.schedulers = make, list[Plan](), list[Any]()

    def setup(self, cluster: Any, accelerator: Any, devices: Any, plan: Plan) -> World:
        self.plans.append(plan)
        return super().setup(cluster, accelerator, devices, plan)

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Any, default: Any) -> Any:
        self.plans.append(plan)
        self.schedulers.append(schedulers)
        return self.make(module, optimizers, schedulers, precision, plan)


def fit(net: LightningModule, strategy: Any, **flags: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0, "strategy": strategy, **flags})
    trainer.fit(net, BATCHES)
    return trainer


class Skipping(PlainEngine):
    """Engine that skips each second step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked = 0
        self.update = self._sometimes  # type: ignore[method-assign]

    def _sometimes(self, *args: Any, **kwargs: Any) -> bool:
        self.asked += 1
        return bool(self.asked % 2) and super().update(*args, **kwargs)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedulers_step_with_the_optimizer(accumulate: int) -> None:
    """Whichever part skips a step, a precision or an engine, no scheduler of interval "step" steps with it."""
    net = Net()
    trainer = fit(net, Watched(Skipping), accumulate_grad_batches=accumulate)
    assert net.by_step.last_epoch == trainer.global_step == {1: 3, 2: 2}[accumulate]
    assert net.by_epoch.last_epoch == 1


class Plateau(Net):
    """Network whose scheduler looks at a metric after each step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": self.plateau, "interval": "step", "monitor": "loss"}]


def test_schedulers_that_watch_a_metric_step_with_the_optimizer() -> None:
    """A scheduler of interval "step" that watches a metric is left out where the optimizer was."""
    net = Plateau()
    trainer = fit(net, Watched(Skipping))
    assert net.plateau.last_epoch == trainer.global_step == 3


def test_an_engine_is_given_the_schedulers_of_each_step() -> None:
    """An engine gets the schedulers that step with the optimizer; where it owns them the core steps all others."""
    for owns, stepped in ((frozenset[str](), 6), (frozenset({"schedule"}), 0)):
        net, strategy = Net(), Watched(type("Owning", (PlainEngine,), {"owns": owns}))
        fit(net, strategy)
        assert strategy.schedulers == [[net.by_step]]
        assert [s.last_epoch for s in (net.by_step, net.by_second_step, net.by_epoch)] == [stepped, 3, 1]


def test_an_override_of_what_the_engine_owns_is_warned_of() -> None:
    """Hooks for what the engine does itself are left out, each with one warning."""

    class Own(Net):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            assert scheduler is not self.by_step
            scheduler.step()

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("the engine clips")

    strategy = Watched(type("Owning", (PlainEngine,), {"owns": frozenset({"schedule", "clip"})}))
    with pytest.warns(UserWarning, match="not called") as warned:
        fit(Own(), strategy, gradient_clip_val=0.1, max_epochs=2)
    said = [str(w.message).partition(":")[0] for w in warned]
    assert said == ["Own.configure_gradient_clipping", "Own.lr_scheduler_step"]


def test_clipping_by_hand_is_warned_of_where_the_engine_clips() -> None:
    """Under manual optimization clip_gradients does nothing, with one warning, where the engine clips by itself."""

    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            self.clip_gradients(optimizer, gradient_clip_val=0.1)
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Clipping(PlainEngine):
        owns = frozenset({"clip"})

        def clip(self, *args: Any) -> None:
            raise AssertionError("the core clips")

    with pytest.warns(UserWarning, match="clip_gradients: the engine of strategy 'watched' clips by itself") as warned:
        fit(Manual(), Watched(Clipping))
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("owns", "flag", "value", "plans"),
    [
        ("accumulate", "accumulate_grad_batches", 2, 2),
        ("clip", "gradient_clip_val", 0.5, 2),
        ("clip", "accumulate_grad_batches", 2, 1),
        ("zero_grad", "gradient_clip_val", 0.5, 1),
    ],
)
def test_an_engine_hears_of_what_it_does_itself(owns: str, flag: str, value: float, plans: int) -> None:
    """Where users change what an engine does by itself, it is built anew with the changed plan; else it stays."""

    class Changes(Net):
        def on_train_epoch_end(self) -> None:
            setattr(self.trainer, flag, value)

    strategy = Watched(type("Owning", (PlainEngine,), {"owns": frozenset({owns})}))
    fit(Changes(), strategy, max_epochs=3)
    _, *given = strategy.plans
    assert len(given) == plans
    field = {"accumulate_grad_batches": "accumulate", "gradient_clip_val": "clip_value"}[flag]
    assert plans == 1 or getattr(given[-1], field) == value


def test_the_plan_has_limits_as_users_changed_them() -> None:
    """A plan that is given out after users changed the limits has the new ones."""

    class Changes(Net):
        def on_train_epoch_end(self) -> None:
            self.trainer.max_steps, self.trainer.max_epochs = 15, 4
            self.layer.bias.requires_grad_(False)  # which needs another engine

    strategy = Watched()
    fit(Changes(), strategy, max_epochs=2)
    assert [(plan.max_steps, plan.max_epochs) for plan in strategy.plans] == [(-1, 2), (-1, 2), (15, 4)]


def test_the_plan_has_the_seed_from_the_start() -> None:
    """Whoever is given a plan finds the run's seed in it."""
    net, strategy = Net(), Watched()
    seed_everything(17, verbose=False)
    fit(net, strategy)
    assert [plan.seed for plan in strategy.plans] == [17, 17]


def test_a_strategy_that_makes_another_module_is_refused() -> None:
    """A strategy that returns a copy in place of the module ends the run with a clear error."""

    class Copies(Watched):
        def shard(self, module: Any, precision: Any, loads_weights: bool) -> Any:
            return Net()

    with pytest.raises(PluginError, match=r"Copies\.shard: it must return the module that it got"):
        fit(Net(), Copies())


class Bare:
    """Strategy with what the protocol lists and nothing else."""

    name, default_launcher, collective_forward, mesh = "bare", None, False, None
    collective_weights = one_process_per_node = False
    device, collectives = torch.device("cpu"), PlainCollectives()
    world = lightning_module = model = None

    def problems(self, plan: Plan, module: Any = None) -> list[Any]:
        return []

    def setup(self, cluster: Any, accelerator: Any, devices: Any, plan: Plan) -> World:
        return World()

    def init_context(self, empty: bool | None = None) -> Any:
        return nullcontext()

    def shard(self, module: Any, precision: Any, loads_weights: bool) -> Any:
        return module

    def engine(self, *args: Any, default: Any) -> Any:
        return default(*args)

    def weights(self, module: Any) -> Any:
        return module

    def checkpoint_io(self) -> str:
        return "safetensors"

    def release(self, module: Any, optimizers: Any) -> None:
        pass

    def leave(self, error: BaseException | None = None) -> None:
        pass


def test_a_strategy_of_the_protocol_alone_knows_its_place() -> None:
    """A strategy without the base of verbs is given its world and the module too."""
    strategy, net = Bare(), Net()
    fit(net, strategy)
    assert strategy.world == World()
    assert strategy.lightning_module is net
    assert strategy.model is net


def test_a_precision_gets_the_device_before_the_model_is_made() -> None:
    """A precision that takes the device has the strategy's, in each run, before configure_model and convert."""
    seen: list[Any] = []

    class Tuned(PlainPrecision):
        name = "tuned"

        def take_device(self, device: torch.device) -> None:
            seen.append(device)

        def convert(self, module: Any) -> Any:
            seen.append("convert")
            return module

    class Late(Net):
        def configure_model(self) -> None:
            seen.append("configure_model")

    trainer = fit(Late(), SingleDeviceStrategy(), precision=Tuned())
    assert seen == [torch.device("cpu"), "configure_model", "convert"]
    trainer.max_epochs += 1
    trainer.fit(Late(), BATCHES)
    assert len(seen) == 6
