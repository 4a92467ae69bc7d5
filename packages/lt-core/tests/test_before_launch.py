"""What is decided and checked before any process starts: scheduler, devices, plan, and what plugins cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ForkLauncher
from quiet import QUIET, Noting

from lt_core import Trainer
from lt_core.builtin.cpu import CPUAccelerator
from lt_core.builtin.precision import FullPrecision
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_interface import ConfigError, Outcome, Plan, Problem, World, registry

BATCHES = [torch.ones(2, 1)] * 2


class Farm:
    """Scheduler whose place a test chooses."""

    name, creates_processes = "farm", True
    main_address, main_port = "node0", 29500
    found = True

    def __init__(self, size: int = 4, local_size: int = 2) -> None:
        self.size, self.local_size = size, local_size

    @classmethod
    def detect(cls) -> bool:
        """Return what the test chose."""
        return cls.found

    def world(self) -> World:
        """Return the place of rank 0."""
        return World(size=self.size, local_size=self.local_size)


class Wide(SingleDeviceStrategy):
    """Strategy that takes any number of devices, and notes what it was asked about."""

    name = "wide"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Plan, Any]] = []

    def problems(self, plan: Plan, module: Any = None) -> list[Problem]:
        self.asked.append((plan, module))
        return []


def trainer(*plugins: Any, **flags: Any) -> Trainer:
    """Return a trainer with some plugins."""
    return Trainer(plugins=list(plugins), **{"strategy": Wide(), "max_epochs": 1, **QUIET, **flags})


def test_unwritten_flags_follow_the_scheduler() -> None:
    """Devices and nodes that the user did not write are those that the scheduler's processes need."""
    made = trainer(Farm())
    assert (made.device_ids, made.num_nodes, made.world_size) == ([0, 1], 2, 4)
    assert trainer(Farm(), devices=2).num_nodes == 2
    assert trainer(Farm(), devices=2, num_nodes=2).world_size == 4


@pytest.mark.parametrize(
    ("flags", "where", "got"),
    [
        ({"devices": 3}, "Trainer(devices=3)", "for 1 x 3 devices"),
        ({"devices": 1}, "Trainer(devices=1)", "for 1 x 1 devices"),
        ({"num_nodes": 2}, "Trainer(num_nodes=2)", "for 2 x 2 devices"),
        ({"devices": 2, "num_nodes": 3}, "Trainer(devices=2, num_nodes=3)", "for 3 x 2 devices"),
    ],
)
def test_a_world_of_another_size_is_refused(flags: dict[str, Any], where: str, got: str) -> None:
    """Flags for another number of processes than the scheduler started are one error, before anything starts."""
    with pytest.raises(ConfigError) as caught:
        trainer(Farm(size=2), **flags)
    assert str(caught.value) == (
        f"{where}: farm must have started one process for each device. Got 2 processes, 2 of them on this node, {got}. "
        "Leave devices and num_nodes out, or start as many processes."
    )


def test_a_scheduler_that_starts_nothing_is_not_checked() -> None:
    """A cluster environment that only says where rank 0 is leaves devices and nodes to the flags."""
    farm = Farm()
    farm.creates_processes = False
    made = trainer(farm, devices=3)
    assert (made.num_devices, made.num_nodes) == (3, 1)


def test_schedulers_are_asked_in_the_order_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first scheduler that recognises itself is taken, a given one before it, and without any there is none."""
    kinds = {name: type(name.title(), (Farm,), {"name": name, "found": name != "a"}) for name in ("a", "b", "c")}
    monkeypatch.setattr(registry.clusters, "names", lambda: sorted(kinds))
    monkeypatch.setattr(registry.clusters, "get", kinds.__getitem__)
    assert trainer()._cluster.name == "b"
    assert trainer(Farm())._cluster.name == "farm"
    for kind in kinds.values():
        monkeypatch.setattr(kind, "found", False)
    assert trainer()._cluster is None


def test_nothing_is_launched_where_a_scheduler_did(tmp_path: Path) -> None:
    """Under a scheduler the run takes place in this process; a launcher that would start more is refused."""
    made = trainer(Farm(size=2), default_root_dir=tmp_path)
    made.fit(Noting(), BATCHES, BATCHES)
    assert made.strategy.asked[0][0].launcher == "in_process"
    with pytest.raises(ConfigError) as caught:
        trainer(Farm(size=2), launcher=ForkLauncher()).fit(Noting(), BATCHES, BATCHES)
    assert str(caught.value) == (
        "Trainer(launcher='test_fork'): farm has started the processes already, so no launcher may start more. "
        "Leave launcher= out."
    )


def test_a_strategy_of_one_device_refuses_more() -> None:
    """Several devices or machines under it are one line when the trainer is made; no launcher is blamed."""
    with pytest.raises(ConfigError) as caught:
        Trainer(**{**QUIET, "strategy": "single_device", "devices": 2, "num_nodes": 2, "max_epochs": 1})
    assert str(caught.value) == (
        'Trainer(strategy="single_device"): this strategy uses one device of one node. Got devices=2, num_nodes=2. '
        'Write strategy="ddp", or leave it out.'
    )


@pytest.mark.parametrize("named", [False, True])
def test_a_launcher_that_nobody_named_is_asked(named: bool) -> None:
    """A plan of two processes that nothing starts is an error before anything starts, as with the launcher written."""
    made = trainer(devices=2, **({"launcher": "in_process"} if named else {}))
    with pytest.raises(ConfigError) as caught:
        made.fit(Noting(), BATCHES, BATCHES)
    assert str(caught.value) == (
        "Trainer, launcher in_process: it starts one process only. Got 2 processes. Set devices=1 and num_nodes=1, "
        "name a launcher that starts them, or start the script with torchrun."
    )


def test_the_plan_holds_every_decision(tmp_path: Path) -> None:
    """The plan that strategy, precision and launcher see is filled completely, and the strategy sees the module."""
    made = trainer(
        max_epochs=3,
        max_steps=7,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        devices=1,
        default_root_dir=tmp_path,
        deterministic=False,
        launcher=ForkLauncher(),
        inference_mode=False,
    )
    module = Noting()
    made.validate(module, BATCHES, verbose=False)
    ((plan, asked),) = made.strategy.asked
    assert asked is module
    assert plan == Plan(
        stage="validate",
        accelerator="cpu",
        strategy="wide",
        launcher="test_fork",
        accumulate=2,
        clip_value=0.5,
        max_epochs=3,
        max_steps=7,
        seed=torch.initial_seed() & 0x7FFF_FFFF,
        inference_mode=False,
        root=str(tmp_path),
    )


class Narrow(Wide):
    """Strategy that refuses every plan."""

    name = "narrow"

    def problems(self, plan: Plan, module: Any = None) -> list[Problem]:
        return [Problem("Trainer(strategy='narrow')", f"it takes no {type(module).__name__}")] if module else []


class Picky(FullPrecision):
    """Precision that refuses every plan."""

    name = "picky"

    def problems(self, plan: Plan) -> list[Problem]:
        return [Problem("Trainer(precision='picky')", f"it cannot {plan.stage}")]


def test_all_plugins_report_at_once() -> None:
    """What flags, strategy, precision and launcher cannot do is one report, before anything starts."""
    made = trainer(Picky(), strategy=Narrow(), devices=2, launcher=ForkLauncher())
    with pytest.raises(ConfigError) as caught:
        made.fit(Noting())
    assert [problem.where for problem in caught.value.problems] == [
        "Trainer.fit",
        "Trainer(strategy='narrow')",
        "Trainer(precision='picky')",
        "Trainer(launcher='test_fork')",
    ]


class Script:
    """Launcher that runs the user's script again: here the caller is the only rank."""

    name, passes = "script", "script"

    def problems(self, plan: Plan) -> list[Problem]:
        """Return nothing."""
        return []

    def launch(self, main: Any, request: Any, plan: Plan, cluster: Any) -> Outcome:
        """Run rank 0 here."""
        outcome: Outcome = main(request)
        assert outcome == Outcome(value=outcome.value)
        return outcome


def test_a_script_that_runs_again_needs_no_outcome(tmp_path: Path) -> None:
    """Where the caller is rank 0, nothing is gathered and nothing applied: the run stays attached."""
    made = trainer(launcher=Script(), default_root_dir=tmp_path)
    made.fit(Noting(), BATCHES, BATCHES)
    assert made.global_step == 2
    assert made._run.engine is not None


class Node(Wide):
    """Strategy of one process that drives all devices of its node."""

    name = "node"
    one_process_per_node = True


class Boards(CPUAccelerator):
    """Accelerator of four devices, that are the CPU; by itself it takes all of them."""

    def device_count(self) -> int:
        """Return four."""
        return 4

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return the strategy of one process a node."""
        return "node"


def test_one_process_may_drive_all_devices_of_its_node(tmp_path: Path) -> None:
    """Where a strategy drives a node's devices from one process, that is counted, and nothing needs to be launched."""
    made = trainer(strategy=Node(), accelerator=Boards(), devices=4, default_root_dir=tmp_path)
    assert (made.num_devices, made.world_size) == (4, 1)
    made.fit(Noting(), BATCHES, BATCHES)
    assert made.world_size == 1
    assert made.strategy.asked[0][0].processes == 1


@pytest.mark.parametrize("name", [True, False], ids=["named", "auto"])
def test_such_a_process_takes_all_devices(monkeypatch: pytest.MonkeyPatch, name: bool) -> None:
    """devices="auto" is then all devices of the node, whether a scheduler started the process or nothing did."""
    kinds = {"node": Node}
    monkeypatch.setattr(registry.strategies, "get", lambda name, where="": kinds[name])
    monkeypatch.setattr(registry.strategies, "names", lambda: ["node"])
    for plugins, nodes in ((), 1), ((Farm(size=2, local_size=1),), 2):
        made = trainer(*plugins, strategy=Node() if name else "auto", accelerator=Boards())
        assert (made.num_devices, made.num_nodes, made.world_size) == (4, nodes, nodes)


def test_a_scheduler_starts_one_such_process_a_node() -> None:
    """As many processes as devices are then one error, before anything starts."""
    with pytest.raises(ConfigError, match=r"one process for each node\. Got 4 processes, 4 of them on this node, for"):
        trainer(Farm(size=4, local_size=4), strategy=Node(), accelerator=Boards())
