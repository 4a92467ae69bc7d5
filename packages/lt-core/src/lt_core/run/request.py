"""Arguments of a call of the trainer, on their way to the processes that run it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch

from lt_core.run.checks import compiled_methods, unwrap
from lt_core.state import rng
from lt_core.state.stage import STAGES
from lt_interface import Plan
from lt_interface.abilities import fact
from lt_interface.errors import MisconfigurationException, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from lt_core.state.progress import TrainerFn
    from lt_core.trainer import Trainer

__all__ = ["Request", "process_state", "restore_process", "unpicklable"]

_DEEPEST = 8  # steps that an error's path goes into an object


@dataclass
class Request:
    """Arguments of a call of the trainer: trainer, model and data.

    A rank that is another process gets it by a fork, or as the bytes that `to_bytes` returns. These are plain pickle:
    multiprocessing would put tensors into shared memory, and all ranks would train the same parameters.

    Attributes:
        model: The module as the user gave it: in its ``torch.compile`` wrapper, if there is one.
        sources: The loaders that the call was given, by the stage's word.
        keep: Whether predictions are returned.
        trusted: Whether objects in the checkpoint may be made, which runs what the file says.
        place: Where a fit saves to.
        ordinal: Which fit of the launching process it is, of those that save there.
        passes: How the request reaches the ranks, as of `lt_interface.Launcher`.
        rest: For a fit: parts of the epoch that an earlier fit of the same module left open; empty without one.
        process: What of the launching process other ones go on with: its random state, and how torch computes.
    """

    trainer: Trainer
    fn: TrainerFn
    model: Any
    plan: Plan
    datamodule: Any = None
    sources: dict[str, Any] = field(default_factory=dict)
    ckpt_path: Any = None
    keep: bool = True
    trusted: bool = False
    place: str = ""
    ordinal: int = 1
    passes: str = "live"
    rest: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> Any:
        """Return the user's module, out of its ``torch.compile`` wrapper."""
        return unwrap(self.model)

    @property
    def compiled(self) -> dict[str, Callable[..., Any]]:
        """Return the compiled steps by name; made in the process that runs them."""
        return compiled_methods(self.model, [stage.step for stage in STAGES])

    @property
    def travels(self) -> bool:
        """Return whether the ranks are other processes, so that an outcome has to come back."""
        return self.passes not in ("live", "script")

    @property
    def began_alone(self) -> bool:
        """Return whether one process was begun and a launcher started the ranks: its caller expects all results."""
        return self.passes != "live" or bool(fact(self.trainer._cluster, "launched", False))

    def to_bytes(self) -> bytes:
        """Return the request as pickle bytes, behind what the error of a rank that cannot read them says.

        Raises:
            MisconfigurationException: If something in it cannot be pickled; the message names it.
        """
        launcher = self.trainer._launcher
        where = f"Trainer.{self.fn}, launcher {launcher.name!r}"
        instead = str(fact(launcher, "instead_of_pickling", ""))
        try:
            return pickle.dumps((where, instead)) + pickle.dumps(self)
        except Exception as error:
            raise unpicklable(where, self._parts(), error, instead) or error from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Request:
        """Return the request of another process.

        Raises:
            MisconfigurationException: If this process cannot make something in it.
        """
        stream = BytesIO(data)
        where, instead = pickle.load(stream)
        try:
            request: Request = pickle.load(stream)
        except Exception as error:
            rule = "other processes must be able to make what they are given, classes and functions by their names"
            fix = "Define functions and classes at the top level of a module, or of the script above its main guard."
            raise MisconfigurationException(
                Problem(where, rule, f"{type(error).__name__}: {str(error).rstrip('.')}", f"{fix} {instead}".rstrip())
            ) from error
        return request

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Yield what is pickled, by the name that users know, the trainer's own parts before the trainer."""
        trainer = self.trainer
        plugins = trainer.strategy, trainer.accelerator, trainer.precision_plugin, trainer.profiler, trainer._launcher
        for part in (
            self.model,
            self.datamodule,
            *trainer.callbacks,
            *trainer.loggers,
            *plugins,
            *trainer._config.plugins,
        ):
            yield type(unwrap(part)).__name__, part
        for word, source in self.sources.items():
            yield f"{word}_dataloaders" if len(self.sources) > 1 else "dataloaders", source
        for handler in trainer._handlers:
            yield f"trainer.on({handler.hook!r})", handler
        yield "trainer", trainer


def unpicklable(
    where: str, parts: Iterable[tuple[str, Any]], error: Exception | None = None, instead: str = ""
) -> MisconfigurationException | None:
    """Return the error that names what cannot be pickled, or None if all can.

    Args:
        where: Which call it is about.
        parts: What travels, by the name that users know.
        error: What pickle said against all of it together; an error then even where no part alone is to blame.
        instead: How to do without pickling, if there is a way.
    """
    found = next(((_path(part, name), cause) for name, part in parts if (cause := _error_of(part))), None)
    path, cause = found or ("its arguments", error)
    if cause is None:
        return None
    fix = "Define functions and classes at the top level of a module, and open files and connections in setup."
    return MisconfigurationException(
        Problem(
            f"{where}: {path}",
            "what goes to other processes must be picklable",
            f"{type(cause).__name__}: {str(cause).rstrip('.')}",
            f"{fix} {instead}".rstrip(),
        )
    )


def _error_of(value: Any) -> Exception | None:
    """Return what pickle says against a value, or None."""
    try:
        pickle.dumps(value)
    except Exception as error:
        return error
    return None


def _path(value: Any, name: str) -> str:
    """Return the path to the innermost part of a value that cannot be pickled."""
    path = name
    for _ in range(_DEEPEST):
        step = next((step for step, part in _members(value) if _error_of(part) is not None), None)
        if step is None:
            break
        path += step
        value = dict(_members(value))[step]
    return re.sub(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", r".\1", path)


def _members(value: Any) -> list[tuple[str, Any]]:
    """Return what pickle finds in a value, each with its step as Python spells it."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, type) or hasattr(value, "__qualname__") or not hasattr(value, "__dict__"):
        return []  # classes and functions are pickled by name
    state = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)
    return [(f".{key}", item) for key, item in state.items()] if isinstance(state, dict) else []


def process_state() -> dict[str, Any]:
    """Return the random state of this process, and how torch computes in it."""
    return {
        "random": rng.capture(),
        "seed": torch.initial_seed(),
        "deterministic": _determinism(),
        "benchmark": torch.backends.cudnn.benchmark,
        "matmul": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
    }


def restore_process(state: dict[str, Any]) -> None:
    """Take over what `process_state` returned in another process; even a fork draws other numbers without it."""
    if state["deterministic"] != _determinism():  # to set it imports the compiler, which takes seconds
        enabled, warn_only = state["deterministic"]
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.benchmark = state["benchmark"]
    if state["matmul"] != torch.get_float32_matmul_precision():  # to set it counts as the user's decision
        torch.set_float32_matmul_precision(state["matmul"])
    torch.set_default_dtype(state["dtype"])
    torch.manual_seed(state["seed"])  # the generators of devices, which are not captured before a device is taken
    rng.restore(state["random"])


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
