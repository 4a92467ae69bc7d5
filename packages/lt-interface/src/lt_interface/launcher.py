"""Launchers: how the ranks of a run are started, and what comes back from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lt_interface.cluster import ClusterEnvironment
    from lt_interface.errors import Problem
    from lt_interface.plan import Plan

__all__ = ["Launcher", "Outcome", "Request"]


@dataclass
class Outcome:
    """Result of a run, on its way from rank 0 to the process that launched it.

    Everything in it is plain values and tensors on the CPU, so that it can travel as plain pickle bytes. The core
    applies it to the trainer, the module and the callbacks of the launching process.

    Attributes:
        value: What the entry point returns, such as the metrics of ``validate`` or the predictions.
        weights: The trained weights by name, or None where the module is shared.
        buffers: Each buffer of the module by name: whether it belongs to the weights, and its tensor or None.
        optimizer_states: State of each optimizer, parameters by name.
        scheduler_states: State of each learning-rate scheduler.
        callback_states: State of each callback by its key.
        datamodule_state: State of the data module.
        logger_states: For each logger what it pickles as, such as the version that it claimed.
        metrics: The metrics at the end: ``"callback"``, ``"logged"`` and ``"progress_bar"`` values by name.
        progress: Counters of completed things.
        stop_reason: Why training ended, or None.
        journal: Path of the run's journal, or None.
        records: Records of a journal that has no file.
        checkpoint_parts: What of a checkpoint only the ranks know, such as the place in the data, for those that the
            launching process saves afterwards.

    Example:
        >>> Outcome(metrics={"callback": {"val_loss": 0.25}}).metrics["callback"]
        {'val_loss': 0.25}
    """

    value: Any = None
    weights: dict[str, Any] | None = None
    buffers: dict[str, tuple[bool, Any]] = field(default_factory=dict)
    optimizer_states: list[dict[str, Any]] = field(default_factory=list)
    scheduler_states: list[dict[str, Any]] = field(default_factory=list)
    callback_states: dict[str, Any] = field(default_factory=dict)
    datamodule_state: dict[str, Any] = field(default_factory=dict)
    logger_states: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    stop_reason: str | None = None
    journal: str | None = None
    records: bytes = b""
    checkpoint_parts: dict[str, Any] = field(default_factory=dict)


class Request(Protocol):
    """What the ranks of a call of the trainer are given: the trainer, module and data, and the random state.

    Example:
        >>> import pickle
        >>> class Numbers(list):
        ...     def to_bytes(self):
        ...         return pickle.dumps(list(self))
        >>> pickle.loads(Numbers([1, 2]).to_bytes())
        [1, 2]
    """

    def to_bytes(self) -> bytes:
        """Return the request as plain pickle bytes, which ``Request.from_bytes`` of its class reads in a rank.

        A launcher with ``passes = "bytes"`` sends these in place of the object: multiprocessing would put tensors into
        shared memory, and all ranks would train the same parameters.

        Raises:
            MisconfigurationException: If something in it cannot be pickled; the message names it.
        """


@runtime_checkable
class Launcher(Protocol):
    """Way to start the ranks of a run and to wait for them; nothing else launches.

    Attributes:
        name: The name users pass.
        passes: How the request reaches the ranks: ``"live"`` in this process; ``"inherited"`` by a fork; ``"bytes"``
            as what `Request.to_bytes` returns; ``"script"`` where the user's script runs again in each rank: the
            caller is rank 0 then, and there is no outcome to apply.

    One that passes bytes may say in ``instead_of_pickling`` what else the user can write; it ends the error about
    what cannot be pickled, or not be found in a rank.

    Example:
        >>> from lt_interface.errors import Problem
        >>> class HereLauncher:
        ...     name, passes = "here", "live"
        ...     def problems(self, plan):
        ...         if plan.processes == 1:
        ...             return []
        ...         return [Problem('Trainer(launcher="here")', "it starts one process", fix="Write devices=1.")]
        ...     def launch(self, main, request, plan, cluster):
        ...         return main(request)
        >>> launcher = HereLauncher()
        >>> isinstance(launcher, Launcher)
        True
        >>> launcher.launch(lambda request: Outcome(value=request + 1), 41, None, None).value
        42
    """

    name: str
    passes: str

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Return what of a plan this launcher cannot do.

        Args:
            plan: What was decided.

        Returns:
            The problems, all at once; empty if the plan can be launched.
        """

    def launch(
        self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: ClusterEnvironment | None
    ) -> Outcome:
        """Run a call of the trainer in every rank, and return when all ranks have ended.

        The core calls it once for each ``fit``, ``validate``, ``test`` or ``predict``; an exception of a rank is
        raised here, and one that ends without a word is an error, too. No rank outlives the call, and the caller's
        environment, folder, signal handlers and, where ranks are other processes, random state stay as they were.

        Each rank that it starts finds its place in its environment, whatever the strategy: ``RANK``, ``WORLD_SIZE``,
        ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, and in ``MASTER_ADDR`` and ``MASTER_PORT`` where rank 0 can be met.

        Args:
            main: A function at the top level of a module, which each rank calls with the request, or with its bytes.
            request: What the ranks need; see `Request`.
            plan: What was decided.
            cluster: The scheduler that started this process, or None.

        Returns:
            The outcome of rank 0.
        """
