"""Strategies: how a model is spread over processes, and how those exchange values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from lt_interface.plan import Plan
from lt_interface.world import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lt_interface.accelerator import Accelerator
    from lt_interface.cluster import ClusterEnvironment
    from lt_interface.engine import Engine
    from lt_interface.errors import Problem
    from lt_interface.precision import Precision
    from lt_interface.state import Weights

__all__ = [
    "BARRIER_SECONDS",
    "Collectives",
    "ComparesRanks",
    "PlainCollectives",
    "ReportsFailures",
    "Strategy",
    "StrategyVerbs",
]

T = TypeVar("T")
#: Seconds after which a barrier is an error: longer than any preparation of data or writing of a file should take.
BARRIER_SECONDS = 1800.0


@runtime_checkable
class Collectives(Protocol):
    """Exchange of values between ranks. With one rank each call returns its input.

    Every rank of the group must make the same calls in the same order; each call waits for the others.

    Example:
        The exchange of a single rank:

        >>> isinstance(PlainCollectives(), Collectives)
        True
        >>> alone = PlainCollectives()
        >>> alone.reduce(0.5), alone.all_gather(0.5), alone.broadcast_object("run-7"), alone.gather_object("run-7")
        (0.5, 0.5, 'run-7', ['run-7'])
        >>> alone.any(False), alone.agree(5), alone.settle(), alone.barrier("the files")
        (False, 5, 0, None)
    """

    def reduce(self, tensor: Tensor, op: str = "mean", group: Any = "data") -> Tensor:
        """Return the reduction of a tensor over all ranks.

        The core calls it for logged values with ``sync_dist=True``, one tensor for many values.

        Args:
            tensor: A tensor of the same shape and format on every rank, on the strategy's device; it stays as it is.
            op: ``"mean"``, ``"sum"``, ``"min"`` or ``"max"``.
            group: ``"data"`` for the ranks that receive different samples, ``"all"`` for all of them, the name of
                another dimension of the strategy's mesh, or a process group that the user gave.

        Returns:
            A tensor of the same shape, the same on every rank. With several ranks the mean of whole numbers is a
            floating-point tensor, and the sum of flags counts them.
        """

    def all_gather(self, tensor: Tensor, group: Any = "data", sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors, stacked.

        The core calls it for the user's ``self.all_gather``.

        Args:
            tensor: A tensor of the same shape and format on every rank, on the strategy's device.
            group: As in `reduce`.
            sync_grads: Whether gradients flow back to the ranks they came from.

        Returns:
            With several ranks a tensor ``(ranks, *tensor.shape)``; with one the tensor itself.
        """

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """Return one rank's object on every rank; the core shares seeds, paths and decisions with it.

        Args:
            obj: The object to send, picklable; what the other ranks give is ignored.
            src: The rank that sends.
        """

    def gather_object(self, obj: T) -> list[T]:
        """Return what every rank gives, by rank, on every rank; the core gathers each rank's part of a checkpoint so.

        Args:
            obj: This rank's object, picklable.
        """

    def barrier(self, name: str = "", timeout: float = BARRIER_SECONDS) -> None:
        """Wait for every rank.

        Args:
            name: What is waited for, for messages.
            timeout: Seconds until it is an error.

        Raises:
            TimeoutError: If a rank does not come in time; the message has the name.
        """

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank: the core agrees on stops and saves with it.

        Args:
            flag: This rank's flag.
        """

    def agree(self, bits: int) -> int:
        """Return the bits that any rank gave in the call before, and send this rank's without waiting for the others.

        With one rank it returns the bits that it is given; with several the first call returns 0. The core calls it
        once a step, for what may arise on one rank at any step: so it must cost microseconds, as a reduction on a
        group of its own does that is begun in one call and read in the next one.

        Args:
            bits: This rank's flags, a number below 2 ** 31.
        """

    def settle(self) -> int:
        """Return the bits that any rank gave in the last `agree`, as the next one would; that one then returns 0.

        It waits for the ranks that have yet to send theirs, and sends nothing, so that one rank alone may call it. With
        nothing on its way, and with one rank, it returns 0.
        """


class PlainCollectives:
    """Exchange of a single rank: every call returns what it was given.

    Example:
        >>> PlainCollectives().agree(5)
        5
    """

    def reduce(self, tensor: Tensor, op: str = "mean", group: Any = "data") -> Tensor:
        """Return the tensor."""
        return tensor

    def all_gather(self, tensor: Tensor, group: Any = "data", sync_grads: bool = False) -> Tensor:
        """Return the tensor, without a new dimension."""
        return tensor

    def broadcast_object(self, obj: T, src: int = 0) -> T:
        """Return the object."""
        return obj

    def gather_object(self, obj: T) -> list[T]:
        """Return the object, alone in a list."""
        return [obj]

    def barrier(self, name: str = "", timeout: float = BARRIER_SECONDS) -> None:
        """Return at once."""

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def agree(self, bits: int) -> int:
        """Return the bits."""
        return bits

    def settle(self) -> int:
        """Return 0: nothing is ever on its way."""
        return 0


@runtime_checkable
class Strategy(Protocol):
    """Placement of a module on devices and ranks, with the engine that steps it.

    The core calls ``problems`` in the parent process, then in each rank, once for each call of the trainer:
    ``setup``, ``init_context`` around the module's ``configure_model``, ``shard``, ``engine`` after the optimizers
    are configured, ``release`` before ``on_fit_end``, and ``leave`` after ``teardown`` of the user's hooks. After
    ``leave`` the next call sets the same object up again. `StrategyVerbs` is the base with the verbs that users know,
    and `WholeModuleStrategy` the one of strategies that leave the module whole.

    Attributes:
        name: The name users pass.
        default_launcher: Name of the launcher, or None to run in this process.
        collective_forward: Whether every rank must run forward equally often. The core then runs none that others do
            not run, such as for a logger's graph.
        collective_weights: Whether weights and optimizer states lie in parts on the ranks, so that ``weights``,
            ``release`` and the engine's ``optimizer_states`` exchange them. After an error, when a rank is alone, the
            core then calls none of these.
        one_process_per_node: Whether one process drives all devices of a node; `StrategyVerbs` has the usual False.
        device: The device of this rank, after ``setup``; the first of them where one process drives several. The core
            sets it before, where the process that makes a trainer is a rank and it is None or the CPU.
        collectives: The exchange between ranks, after ``setup``.
        mesh: The named mesh of devices (``torch.distributed.device_mesh.DeviceMesh``), after ``setup``; None without.
        world: The place of this process, which the core sets after ``setup``.
        lightning_module: The user's module, which the core sets for each call of the trainer.
        model: The module as the engine runs it, which the core sets.
        trainer: The trainer, which the core sets when it is made and for each of its calls.

    Example:
        All in one process, on the accelerator's first device:

        >>> from contextlib import nullcontext
        >>> from lt_interface.errors import Problem
        >>> class OneDevice(StrategyVerbs):
        ...     name, default_launcher = "one_device", None
        ...     collective_forward = collective_weights = False
        ...     device, collectives, mesh = None, None, None
        ...     def problems(self, plan, module=None):
        ...         if plan.processes == 1:
        ...             return []
        ...         return [Problem('Trainer(strategy="one_device")', "it uses one device", fix="Write devices=1.")]
        ...     def setup(self, cluster, accelerator, devices, plan):
        ...         self.accelerator, self.device = accelerator, accelerator.device(devices[0])
        ...         accelerator.setup(self.device)
        ...         self.collectives = PlainCollectives()
        ...         return World()
        ...     def init_context(self, empty=None):
        ...         return nullcontext()
        ...     def shard(self, module, precision, loads_weights):
        ...         return precision.convert(module).to(self.device)
        ...     def engine(self, module, optimizers, schedulers, precision, plan, default):
        ...         return default(module, optimizers, schedulers, precision, plan)
        ...     def weights(self, module):
        ...         return module
        ...     def checkpoint_io(self):
        ...         return "safetensors"
        ...     def release(self, module, optimizers):
        ...         module.to("cpu")
        ...     def leave(self, error=None):
        ...         self.accelerator.teardown()
        >>> strategy = OneDevice()
        >>> isinstance(strategy, Strategy)
        True
        >>> str(strategy.problems(Plan(devices=(0, 1)))[0])
        'Trainer(strategy="one_device"): it uses one device. Write devices=1.'
    """

    name: str
    default_launcher: str | None
    collective_forward: bool
    collective_weights: bool
    one_process_per_node: bool
    device: torch.device
    collectives: Collectives
    mesh: Any
    world: World
    lightning_module: Any
    model: Any
    trainer: Any

    def problems(self, plan: Plan, module: nn.Module | None = None) -> Sequence[Problem]:
        """Return what of a plan, or of a module under it, this strategy cannot do; it touches no device.

        Args:
            plan: What was decided.
            module: The user's module, as it was given.

        Returns:
            The problems, all at once: the core raises them together with those of the flags. Empty if there is none.
        """

    def setup(
        self, cluster: ClusterEnvironment | None, accelerator: Accelerator, devices: Sequence[int], plan: Plan
    ) -> World:
        """Join the other ranks and set up this rank's device; ``device`` and ``collectives`` are valid from then on.

        Args:
            cluster: The cluster environment that the user gave or that was detected; None where there is none. The
                place of a rank that a launcher started is then in its environment, see `Launcher.launch`.
            accelerator: The kind of device; its ``setup`` is called here, once.
            devices: Indices of the devices of this node, at least one.
            plan: What was decided.

        Returns:
            The place of this process among its peers.
        """

    def init_context(self, empty: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which modules are constructed on the right device; it leaves no trace.

        Args:
            empty: True leaves weights without values, because they will be loaded; None or False fills them.
        """

    def shard(self, module: nn.Module, precision: Precision, loads_weights: bool) -> nn.Module:
        """Convert, parallelise, materialise and move a module, in place; its parameters are final afterwards.

        The core calls it once, before optimizers are configured and before weights of a checkpoint are loaded. What
        needs another object around the module, such as a compiled or a wrapping one, belongs to the engine.

        Ranks that hold the same parameters get the same values here, rank 0's. Metric objects of torchmetrics combine
        the ranks' states by themselves, through torch's default process group; a strategy whose ranks have none gives
        them its own exchange here, as ``dist_sync_fn`` and ``distributed_available_fn``, until ``leave``.

        Args:
            module: The user's module, on the CPU, the device or the meta device.
            precision: The precision; ``precision.convert`` is called here.
            loads_weights: Whether weights are loaded next, so that values need not be made here.

        Returns:
            The same module, with its own names of parameters, ready for an optimizer.

        Raises:
            MisconfigurationException: If a part on the meta device cannot get values and no weights are loaded.
        """

    def engine(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[Any],
        precision: Precision,
        plan: Plan,
        default: Callable[..., Engine],
    ) -> Engine:
        """Build the engine that steps a module.

        The core calls it after ``shard``, and again when the set of trainable parameters, the optimizers, these
        schedulers or ``training_step`` change, and where the engine accumulates or clips by itself when the plan's
        ``accumulate`` or clipping does; the engine before is closed first. While it is called, a step of a module that
        ``torch.compile`` wraps is an attribute of the module's instance, so that the compiled form is what is called.

        Args:
            module: What ``shard`` returned.
            optimizers: The optimizers over its parameters, in the user's order; empty outside of a fit.
            schedulers: The learning-rate schedulers that step with the optimizer, without a metric; the core steps them
                unless the engine owns ``"schedule"``, and steps all others in any case.
            precision: The precision, as in ``shard``.
            plan: What was decided.
            default: Builds a plain engine of one process from the same arguments, itself left out.

        Returns:
            The engine.
        """

    def weights(self, module: nn.Module) -> Weights:
        """Return what saves and loads a module's weights by the user's names, whole on the CPU or as its own shards.

        The core saves and loads through it, before the optimizers exist too. Every rank calls both methods, unless one
        is alone after an error, see ``collective_weights``.

        Args:
            module: What ``shard`` returned.
        """

    def checkpoint_io(self) -> str:
        """Return the name of the checkpoint format that fits this strategy."""

    def release(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Make full, plain parameters and optimizer states on the CPU; called before ``on_fit_end``, while ranks meet.

        After an error it is called on each rank alone, unless the strategy has ``collective_weights``. Where they do
        not fit into memory, they are left as they are, with a warning.

        Args:
            module: What ``shard`` returned.
            optimizers: The user's optimizers, which hold the states afterwards, whatever the engine put around them.
        """

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the other ranks; called after the user's ``teardown``. A second call does nothing.

        Without an error the process group may stay for the next call of the same world.

        Args:
            error: What ended the run, or None; after an error other ranks must not be waited for.
        """


@runtime_checkable
class ComparesRanks(Protocol):
    """Ability of a strategy to find ranks that have drifted apart while they train.

    Example:
        >>> class Compares:
        ...     def compare_ranks(self, module, optimizers):
        ...         print(len(optimizers))
        >>> isinstance(Compares(), ComparesRanks)
        True
    """

    def compare_ranks(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Compare what must be the same on every rank; each calls it at the end of an epoch of training.

        Args:
            module: What ``shard`` returned.
            optimizers: The user's optimizers.

        Raises:
            MisconfigurationException: On every rank, if something differs that makes what is trained useless.
        """


@runtime_checkable
class ReportsFailures(Protocol):
    """Ability of a strategy to let the other ranks know that this one failed, so that none waits for it.

    Without it a rank that fails is noticed when it leaves, by those that wait for it in an exchange that ends then.

    Example:
        >>> class Notes:
        ...     def report(self, where, error):
        ...         print(where, repr(error))
        ...         return error
        >>> isinstance(Notes(), ReportsFailures)
        True
    """

    def report(self, where: str, error: BaseException) -> BaseException:
        """Report this rank's error to the others; it waits for nobody, and nothing is exchanged afterwards.

        From then on each exchange, on every rank, must raise a `RankFailedError`. The core calls it once, before
        ``on_exception``; on the ranks that end by such an error too.

        Args:
            where: What this rank was doing: the call of the trainer, the step, and the name of a hook.
            error: The error.

        Returns:
            The error that this rank raises: the given one, or a `RankFailedError` that names the rank which failed
            first, where the given one only follows from that.
        """


# What of a strategy users read that is the trainer's, by the trainer's names.
_OF_TRAINER = frozenset(
    [
        "accelerator",
        "cluster_environment",
        "distributed_sampler_kwargs",
        "launcher",
        "lr_scheduler_configs",
        "num_nodes",
        "optimizers",
        "parallel_devices",
        "precision_plugin",
    ]
)
# What users know from elsewhere, and what to write instead.
_INSTEAD = {
    "backward": "self.manual_backward(loss)",
    "batch_to_device": "trainer.lightning_module.transfer_batch_to_device(batch, device, 0)",
    "is_distributed": "trainer.world_size > 1",
    "lightning_module_state_dict": "trainer.strategy.weights(module).state_dict()",
    "load_model_state_dict": "trainer.strategy.weights(module).load_state_dict(weights)",
    "load_optimizer_state_dict": "optimizer.load_state_dict(state)",
    "lr_schedulers": "trainer.lr_scheduler_configs",
    "model_to_device": "module.to(trainer.strategy.root_device)",
    "no_backward_sync": "trainer.strategy.block_backward_sync()",
    "optimizer_state": "optimizer.state_dict()",
    "optimizer_step": "optimizer.step()",
    "predict_step": "trainer.lightning_module.predict_step(...)",
    "process_dataloader": "the loader itself: the trainer shares its batches among the ranks",
    "setup_environment": "nothing: fit, validate, test and predict set the strategy up",
    "teardown": "trainer.strategy.leave()",
    "tensor_init_context": "trainer.init_module()",
    "test_step": "trainer.lightning_module.test_step(...)",
    "training_step": "trainer.lightning_module.training_step(...)",
    "validation_step": "trainer.lightning_module.validation_step(...)",
}


class StrategyVerbs:
    """Verbs of ``trainer.strategy`` that users know, over a strategy's collectives, and what they read there.

    What belongs to the trainer (``accelerator``, ``launcher``, ``cluster_environment``, ``parallel_devices``,
    ``num_nodes``, ``precision_plugin``, ``optimizers``, ``lr_scheduler_configs``, ``distributed_sampler_kwargs``) can
    be read here, too; a name that has no meaning here is an `AttributeError` with what to write instead.

    Attributes:
        world: The place of this process; the core sets it after ``setup``.
        lightning_module: The user's module; the core sets it for each call of the trainer.
        model: The module as the engine runs it.
        trainer: The trainer; the core sets it.
        one_process_per_node: Whether one process drives all devices of a node.

    Example:
        >>> class Echo:
        ...     def broadcast_object(self, obj, src=0):
        ...         return obj
        ...     def barrier(self, name="", timeout=BARRIER_SECONDS):
        ...         print("all are at", name)
        ...     def reduce(self, tensor, op="mean", group="data"):
        ...         return op
        ...     def all_gather(self, tensor, group="data", sync_grads=False):
        ...         return [tensor]
        ...     def any(self, flag):
        ...         return flag
        >>> strategy = StrategyVerbs()
        >>> strategy.collectives = Echo()
        >>> strategy.is_global_zero, strategy.broadcast("run-7"), strategy.all_gather(0.5)
        (True, 'run-7', [0.5])
        >>> strategy.barrier("download")
        all are at download
        >>> strategy.reduce(0.5, reduce_op="avg"), strategy.reduce_boolean_decision(True)
        ('mean', True)
        >>> class Files(dict):
        ...     collective, wait, save = False, list, lambda self, tree, path: self.update({path: tree})
        ...     load, remove = dict.get, dict.pop
        >>> class Boss:
        ...     checkpoint_io, num_nodes = Files(), 1
        >>> strategy.trainer = Boss()
        >>> strategy.save_checkpoint({"step": 3}, "a.ckpt")
        >>> strategy.load_checkpoint("a.ckpt"), strategy.remove_checkpoint("a.ckpt"), strategy.num_nodes
        ({'step': 3}, None, 1)
        >>> strategy.optimizer_step
        Traceback (most recent call last):
        AttributeError: StrategyVerbs.optimizer_step: no strategy has it here. Write: optimizer.step()
    """

    name: str
    one_process_per_node: bool = False
    device: torch.device
    collectives: Collectives
    world: World = World()
    lightning_module: Any = None
    model: Any = None
    trainer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the module and the trainer, which sets them again."""
        return {key: value for key, value in vars(self).items() if key not in ("lightning_module", "model", "trainer")}

    def __getattr__(self, name: str) -> Any:
        where = f"{type(self).__name__}.{name}"
        if name in _OF_TRAINER:
            if self.trainer is None:
                raise AttributeError(f"{where}: it is the trainer's. Got no trainer yet. Give it this strategy.")
            return getattr(self.trainer, name)
        if name in _INSTEAD:
            raise AttributeError(f"{where}: no strategy has it here. Write: {_INSTEAD[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def connect(self, model: Any) -> None:
        """Name the module before a run, for code that reads it here; a call of the trainer names its own.

        Args:
            model: The module.

        Example:
            >>> strategy = StrategyVerbs()
            >>> strategy.connect("module")
            >>> strategy.lightning_module, strategy.model
            ('module', 'module')
        """
        self.lightning_module = self.model = model

    def setup_optimizers(self, trainer: Any) -> None:
        """Have ``configure_optimizers`` called again, inside fit; ``trainer.renew_optimizers`` does the same.

        Args:
            trainer: The trainer.

        Example:
            >>> from types import SimpleNamespace
            >>> StrategyVerbs().setup_optimizers(SimpleNamespace(renew_optimizers=lambda: print("made anew")))
            made anew
        """
        trainer.renew_optimizers()

    @property
    def strategy_name(self) -> str:
        """Return the name that users pass."""
        return str(self.name)

    @property
    def root_device(self) -> torch.device:
        """Return the device of this rank; before a run, the one that it will take if this process is a rank."""
        return self.device

    @property
    def is_global_zero(self) -> bool:
        """Return whether this is rank 0 of all processes."""
        return self.world.is_global_zero

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self.world.size

    @property
    def global_rank(self) -> int:
        """Return the number of this process among all."""
        return self.world.rank

    @property
    def local_rank(self) -> int:
        """Return the number of this process on its node."""
        return self.world.local_rank

    @property
    def node_rank(self) -> int:
        """Return the number of this node."""
        return self.world.node_rank

    @property
    def num_processes(self) -> int:
        """Return the number of processes on this node."""
        return self.world.local_size

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """Return a context for backward passes under manual optimization whose gradients ranks need not exchange yet.

        The next pass outside of it exchanges them. A strategy that has nothing to save there has a context that does
        nothing.
        """
        return nullcontext()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str, storage_options: Any = None) -> None:
        """Write a tree of values through the trainer's store; where that is not collective, rank 0 alone does.

        Args:
            checkpoint: The tree.
            filepath: The file.
            storage_options: Must be None: stores take theirs where they are constructed.

        Raises:
            TypeError: If it is not.
        """
        if storage_options is not None:
            raise TypeError("save_checkpoint(storage_options): a store takes its options where it is constructed.")
        store = self.trainer.checkpoint_io
        if store.collective or self.is_global_zero:
            store.save(checkpoint, str(filepath))
            store.wait()

    def load_checkpoint(self, checkpoint_path: str) -> dict[str, Any]:
        """Return what a checkpoint holds, read through the trainer's store.

        Args:
            checkpoint_path: The file.
        """
        found: dict[str, Any] = self.trainer.checkpoint_io.load(str(checkpoint_path))
        return found

    def remove_checkpoint(self, filepath: str) -> None:
        """Remove a checkpoint; rank 0 alone does.

        Args:
            filepath: The file.
        """
        if self.is_global_zero:
            self.trainer.checkpoint_io.remove(str(filepath))

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Return one rank's object, or tensor, on every rank.

        Args:
            obj: The object to send, picklable; what the other ranks give is ignored.
            src: The rank that sends.
        """
        return self.collectives.broadcast_object(obj, src)

    def barrier(self, name: str | None = None) -> None:
        """Wait for every rank.

        Args:
            name: What is waited for, for messages.
        """
        self.collectives.barrier(name or "")

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str | None = "mean") -> Tensor:
        """Return the reduction of a tensor over the ranks.

        Args:
            tensor: A tensor of the same shape on every rank.
            group: A process group, or None for all ranks that receive different samples.
            reduce_op: ``"mean"`` (or ``"avg"``), ``"sum"``, ``"min"`` or ``"max"``.
        """
        op = (reduce_op or "mean").lower()
        return self.collectives.reduce(tensor, "mean" if op == "avg" else op, "data" if group is None else group)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return, on every rank, whether a decision is true on all of them.

        Args:
            decision: This rank's.
            all: False asks whether it is true on any.

        Returns:
            The same on every rank.
        """
        return not self.collectives.any(not decision) if all else self.collectives.any(bool(decision))

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors, stacked.

        Args:
            tensor: A tensor of the same shape on every rank.
            group: A process group, or None for all ranks that receive different samples.
            sync_grads: Whether gradients flow back to the ranks they came from.
        """
        return self.collectives.all_gather(tensor, "data" if group is None else group, sync_grads)
