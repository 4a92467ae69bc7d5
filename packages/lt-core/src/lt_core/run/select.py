"""Find the parts that a trainer's flags name, through the registry."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lt_core.notices import info, warn
from lt_interface import ChecksWorld, Plan, World, as_cluster, registry
from lt_interface.abilities import fact
from lt_interface.accelerator import DescribesDevices
from lt_interface.errors import ConfigError, MisconfigurationException, Problem, UnknownPluginError, raise_problems

if TYPE_CHECKING:
    from lt_core.callback import Callback
    from lt_core.config.flags import TrainerConfig

__all__ = [
    "Finding",
    "as_written",
    "default_callbacks",
    "find_accelerator",
    "find_cluster",
    "find_precision",
    "find_profiler",
    "find_spread",
    "make_loggers",
    "ordered",
]

_PART = re.compile(r"""\b(strategy|launcher)=(?:"[^"]*"|'[^']*')(?:, )?""")


class Finding:
    """Search for several parts: what each call raised is raised together at the end of the block."""

    def __init__(self) -> None:
        self.errors: list[MisconfigurationException] = []

    def call(self, find: Callable[..., Any], *args: Any) -> Any:
        """Return what a function finds, or None where it raised."""
        try:
            return find(*args)
        except MisconfigurationException as error:
            self.errors.append(error)
            return None

    def __enter__(self) -> Finding:
        return self

    def __exit__(self, *error: object) -> None:
        if len(self.errors) > 1 and all(one.problems for one in self.errors):
            raise_problems([problem for one in self.errors for problem in one.problems])
        if self.errors:
            raise self.errors[0]


def find_profiler(config: TrainerConfig) -> Any:
    """Return the profiler that the flag means; without one, one that measures nothing: code may open actions of it."""
    given = config.profiler
    if given is None:
        from lt_core.profilers import PassThroughProfiler

        return PassThroughProfiler()
    return registry.profilers.get(given)() if isinstance(given, str) else given


def ordered(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks with those that save checkpoints last."""
    from lt_core.callbacks import Checkpoint

    return sorted(callbacks, key=lambda c: isinstance(c, Checkpoint))


def find_precision(config: TrainerConfig, accelerator: Any) -> Any:
    """Return the precision that the flag or a plugin means; of names, one that the accelerator's kind has."""
    given = config.plugin("precision") or config.precision
    if not isinstance(given, str):
        return given
    where = f"Trainer(precision={given!r})"
    name = registry.ON_A_CPU.get(given, given) if accelerator is not None and accelerator.kind == "cpu" else given
    if name != given:
        warn(f'{where}: a CPU has no {given}, so "{name}" is used. Write precision="{name}".')
    return registry.precisions.get(name, where)()


def find_accelerator(config: TrainerConfig) -> Any:
    """Return the accelerator that the flag means.

    Raises:
        MisconfigurationException: If it is installed but no such device is here.
    """
    given = config.accelerator
    if not isinstance(given, str):
        return given
    where = f"Trainer(accelerator={given!r})"
    aliases = registry.accelerators.aliases.get(given)
    if given == "auto" or aliases is not None:
        installed = [registry.accelerators.get(name)() for name in registry.accelerators.names()]
        meant = [a for a in installed if given in ("auto", a.kind)]
        if not meant and aliases is not None:
            registry.accelerators.get(aliases[-1], where)  # raises: says what to install
    else:
        meant = [registry.accelerators.get(given, where)()]
    usable = [a for a in meant if a.is_available()]
    if usable:
        best = max(usable, key=lambda a: a.priority)
        if given == "auto" and best.kind == "cpu":
            _warn_of_undriven(where)
        return best
    for accelerator in meant:
        problem = accelerator.missing() if isinstance(accelerator, DescribesDevices) else None
        if problem is not None:
            raise MisconfigurationException(replace(problem, where=where))
    raise MisconfigurationException(Problem(where, "no such device can be used here", fix='Write accelerator="auto".'))


def _warn_of_undriven(where: str) -> None:
    """Warn of a device that torch can use, and for which a sibling package is missing."""
    for name, command in registry.accelerators.absent().items():
        modules = (getattr(torch, name, None), getattr(torch.backends, name, None))
        with warnings.catch_warnings():  # an unusable driver is no news to who trains on the CPU
            warnings.simplefilter("ignore")
            seen = any(module is not None and getattr(module, "is_available", bool)() for module in modules)
        if seen:
            warn(f"{where}: torch can use {name} here, and nothing installed drives it, so the CPU is used. {command}")


def find_cluster(config: TrainerConfig) -> Any:
    """Return the scheduler that started this process: the one given, else the first that recognises itself, or None.

    A rank that a launcher started by the script keeps to that, whatever else the script gives.
    """
    given = config.plugin("cluster")
    kinds = sorted(map(registry.clusters.get, registry.clusters.names()), key=lambda k: -getattr(k, "priority", 0))
    found = next((kind() for kind in kinds if kind.detect()), None)
    if given is None or getattr(found, "launched", False):
        return found
    return as_cluster(given, config.num_nodes if "num_nodes" in config.explicit else None)


def _find_devices(config: TrainerConfig, accelerator: Any, cluster: Any) -> list[int]:
    """Return the device indices that the flag means; ``"auto"`` is one for each process that a scheduler started here.

    Raises:
        ConfigError: If the flag names a device that is not there.
    """
    spec = config.devices
    if spec == "auto":
        starts = cluster is not None and cluster.creates_processes
        spec = cluster.world().local_size if starts else max(accelerator.device_count(), 1)
    try:
        return list(accelerator.parse_devices(list(spec) if isinstance(spec, tuple) else spec))
    except ValueError as error:
        text = str(error).rstrip(".")
        where = f"Trainer(devices={config.devices!r})"
        raise ConfigError(text + "." if text.startswith("Trainer(") else Problem(where, text)) from error


def _find_nodes(config: TrainerConfig, cluster: Any) -> int:
    """Return the number of nodes that the flag means; without it, as many as the scheduler's processes need."""
    if cluster is None or not cluster.creates_processes or "num_nodes" in config.explicit:
        return config.num_nodes
    world: World = cluster.world()
    return max(world.size // world.local_size, 1)


def _check_processes(config: TrainerConfig, cluster: Any, plan: Plan) -> None:
    """Compare what a scheduler started with what was asked for.

    Raises:
        ConfigError: If the scheduler started another number of processes.
    """
    written = [f"{name}={getattr(config, name)!r}" for name in ("devices", "num_nodes") if name in config.explicit]
    where = f"Trainer({', '.join(written)})"
    if isinstance(cluster, ChecksWorld):
        raise_problems(cluster.problems(plan, where))
        return
    world, per_node = cluster.world(), plan.one_process_per_node
    if world.size == plan.processes:
        return
    raise ConfigError(
        Problem(
            where,
            f"{cluster.name} must have started one process for each {'node' if per_node else 'device'}",
            f"{world.size} processes, {world.local_size} of them on this node, "
            f"for {plan.num_nodes} x {len(plan.devices)} devices",
            "Leave devices and num_nodes out, or start as many processes.",
        )
    )


def find_spread(config: TrainerConfig, accelerator: Any, cluster: Any) -> tuple[tuple[int, ...], int, Any, Any]:
    """Return devices, number of nodes, strategy and launcher, which depend on one another.

    ``devices="auto"`` is all devices where one process drives them or something starts a process for each, and the
    first one where nothing does, unless the user named a strategy for several.

    Args:
        config: The flags.
        accelerator: The kind of device.
        cluster: The scheduler, or None.

    Raises:
        ConfigError: If the strategy cannot do with so many.
    """
    devices = tuple(_find_devices(config, accelerator, cluster))
    nodes = _find_nodes(config, cluster)
    started = cluster is not None and cluster.creates_processes
    may_shrink = config.devices == "auto" and not started
    default = accelerator.default_strategy(len(devices), nodes) if config.strategy == "auto" else None
    if may_shrink and default is not None and default not in registry.strategies.names():
        devices = devices[:1]
    strategy = _find_strategy(config, accelerator, len(devices), nodes)
    if strategy.one_process_per_node:
        may_shrink = False
        if config.devices == "auto":
            devices = tuple(range(max(accelerator.device_count(), 1)))
    if started:
        plan = Plan(devices=devices, num_nodes=nodes, one_process_per_node=strategy.one_process_per_node)
        _check_processes(config, cluster, plan)
    launcher = _find_launcher(config, strategy, cluster, len(devices) * nodes)
    alone = default is not None or strategy.name == Plan.strategy
    if may_shrink and alone and launcher.passes == "live" and len(devices) > 1:
        devices = devices[:1]
        strategy = _find_strategy(config, accelerator, 1, nodes)
    spread = Plan(
        accelerator=accelerator.kind,
        device_type=accelerator.device(devices[0]).type,
        strategy=strategy.name,
        devices=devices,
        num_nodes=nodes,
        one_process_per_node=strategy.one_process_per_node,
    )
    if not started and spread.processes == 1 and strategy.name == Plan.strategy:
        _warn_of_ranks(config, accelerator)
    if spread.processes > 1:  # with the module and all other flags it is asked later
        raise_problems([as_written(config, problem) for problem in strategy.problems(spread)])
    if launcher.passes in ("live", "script") and getattr(strategy, "device", None) in (None, torch.device("cpu")):
        # This process is one of the ranks: what users make before a run can already lie on its device.
        strategy.device = accelerator.device(devices[cluster.world().local_rank % len(devices) if started else 0])
    return devices, nodes, strategy, launcher


def _warn_of_ranks(config: TrainerConfig, accelerator: Any) -> None:
    """Warn where the environment knows of several ranks that no scheduler is recognised by, and each trains alone."""
    if "RANK" not in os.environ and "LOCAL_RANK" not in os.environ:
        return
    size, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if not size.isdecimal() or int(size) < 2:
        return
    here = int(local) if local.isdecimal() and int(local) else int(size)
    strategy = accelerator.default_strategy(int(size), 1)
    nodes = f", num_nodes={int(size) // here}" if int(size) > here else ""
    lacks = registry.strategies.absent().get(strategy, "")
    seen = ", ".join(f"{n}={os.environ[n]}" for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if n in os.environ)
    warn(
        f"Trainer(strategy={config.strategy!r}, devices={config.devices!r}): this process trains alone. Got {seen} in "
        f'the environment. For one training of all, write Trainer(strategy="{strategy}", devices={here}{nodes}) or '
        f"start them with torchrun; for trainings of their own, unset WORLD_SIZE. {lacks}".rstrip()
    )


def _find_strategy(config: TrainerConfig, accelerator: Any, devices: int, nodes: int) -> Any:
    name = config.strategy
    if name == "auto":
        name = accelerator.default_strategy(devices, nodes)
        notebook = f"{name}_notebook"  # there is no script that ranks could run again
        name = notebook if hasattr(sys, "ps1") and notebook in registry.strategies.names() else name
    if not isinstance(name, str):
        return name
    problem = registry.strategies.problem(name, f"Trainer(strategy={name!r})")
    if problem is not None and config.strategy == "auto" and name in registry.strategies.absent():
        rule = "what starts and joins several processes comes with another package"
        raise UnknownPluginError(replace(as_written(config, problem), rule=rule))
    return registry.strategies.get(name, f"Trainer(strategy={name!r})")()


def as_written(config: TrainerConfig, problem: Problem) -> Problem:
    """Return a problem whose place names no strategy or launcher that the user did not write."""
    unwritten = {"strategy", "launcher"} if config.strategy == "auto" and config.launcher is None else set()
    where = _PART.sub(lambda part: "" if part[1] in unwritten else part[0], problem.where)
    if where == "Trainer()" != problem.where:
        names = [name for name in ("devices", "num_nodes") if name in config.explicit] or ["devices"]
        where = f"Trainer({', '.join(f'{name}={getattr(config, name)!r}' for name in names)})"
    return replace(problem, where=where)


def _find_launcher(config: TrainerConfig, strategy: Any, cluster: Any, devices: int) -> Any:
    """Return what starts the ranks: as the flag says, else nothing for one or if a scheduler did, else the strategy's.

    Args:
        config: The flags.
        strategy: The strategy.
        cluster: The scheduler that started this process, or None.
        devices: How many there are on all nodes.
    """
    name = None if fact(cluster, "launched", False) else config.launcher  # by which this process is one of its ranks
    if name is None and devices > 1 and (cluster is None or not cluster.creates_processes):
        name = strategy.default_launcher
    name = Plan.launcher if name is None else name
    return registry.launchers.get(name, f"Trainer(launcher={name!r})")() if isinstance(name, str) else name


def default_callbacks(config: TrainerConfig) -> list[Callback]:
    """Return the user's callbacks with those that the flags add."""
    from lt_core.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, ProgressBar, RichProgressBar, Timer

    callbacks = list(config.callbacks)

    def lacks(kind: type) -> bool:
        return not any(isinstance(c, kind) for c in callbacks)

    if config.enable_progress_bar and lacks(ProgressBar):
        callbacks.append(RichProgressBar())
    if config.enable_model_summary and lacks(ModelSummary):
        callbacks.append(ModelSummary())
    if config.max_time is not None:
        if lacks(Timer):
            callbacks.append(Timer(duration=config.max_time, interval="step"))
        else:
            info("Trainer(max_time): a Timer callback is there already, so max_time is ignored.")
    if config.enable_checkpointing and lacks(Checkpoint):
        callbacks.append(ModelCheckpoint())
    return ordered(callbacks)


def make_loggers(config: TrainerConfig) -> list[Any]:
    """Return the loggers, those given by name constructed in the root folder."""
    if config.fast_dev_run and config.logger:
        from lt_core.tracking.dummy import DummyLogger

        return [DummyLogger()]
    made = []
    for item in config.logger:
        if isinstance(item, str):
            made.append(registry.loggers.get(item, f"Trainer(logger={item!r})")(save_dir=config.default_root_dir))
        else:
            made.append(item)
    return made
