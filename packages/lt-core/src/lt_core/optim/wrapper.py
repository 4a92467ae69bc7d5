"""Wrap optimizers for the user's hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["LightningOptimizer"]


@cache
def _class_of(kind: type[Optimizer]) -> type[LightningOptimizer]:
    """Return the class of the wrappers of one kind of optimizer: of that kind too."""
    return type(f"Lightning{kind.__name__}", (LightningOptimizer, kind), {})


def _itself(optimizer: Optimizer) -> Optimizer:
    return optimizer


def _passed_on(name: str, text: str) -> Any:
    """Return a property that is read from the wrapped optimizer and written to it."""
    get = attrgetter(f"_optimizer.{name}")
    return property(get, lambda self, value: setattr(self._optimizer, name, value), doc=text)


class LightningOptimizer:
    """Handle that steps an optimizer through the trainer: hooks, precision and counters included.

    It is of the user's optimizer's class too, and what it does not define is read from the optimizer.

    Args:
        optimizer: The engine's optimizer: the user's own, or what the engine put around it.
        index: Its place among those that configure_optimizers returned.
        run: The run whose engine steps it.
    """

    def __new__(cls, optimizer: Optimizer, index: int, run: Run) -> LightningOptimizer:
        """Make a handle of the class of the user's optimizer too."""
        kind: Any = type(run.optimizers[index])
        return object.__new__(_class_of(kind))

    def __init__(self, optimizer: Optimizer, index: int, run: Run) -> None:
        self._optimizer = optimizer  # the optimizer's own __init__ is not run: its state is read through
        self._index = index
        self._run = run
        self._loss: Any = None  # what the closure of the running step returned last
        engine = run.engine
        self._update = run.timed(engine.update, "optimizer_step")
        self._unscale = engine.unscale if run.precision.scales and "unscale" not in engine.owns else None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped optimizer."""
        if name == "_optimizer":  # while it is copied, before it wraps anything
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy, and pickle, as the wrapped optimizer: a copy belongs to no run."""
        return _itself, (self._optimizer,)

    @property
    def optimizer(self) -> Optimizer:
        """Return the wrapped optimizer."""
        return self._optimizer

    # load_state_dict replaces these on the wrapped one
    state: Any = _passed_on("state", "The wrapped optimizer's state.")
    param_groups: list[dict[str, Any]] = _passed_on("param_groups", "The wrapped optimizer's parameter groups.")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the wrapped optimizer."""
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state into the wrapped optimizer."""
        self._optimizer.load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Step the optimizer once.

        Args:
            closure: Computes the loss and its gradients; needed by optimizers such as LBFGS.
            **kwargs: Passed on to the wrapped optimizer's ``step``.

        Returns:
            What the closure returned last; None without one.
        """
        run = self._run
        if not run.module.automatic_optimization:  # else the trainer's closure runs these hooks and notes its loss
            if closure is None:
                self._before_step()
            else:
                closure = self._noting(closure)
        if self._update(self._index, True, closure, **kwargs):
            run.loop.fit.stepped = True
        loss, self._loss = self._loss, None
        return loss

    def _before_step(self) -> None:
        """Run the hooks that look at gradients, on their true size."""
        run = self._run
        if run.hooks.on_before_optimizer_step:  # type: ignore[attr-defined]
            if self._unscale is not None:
                self._unscale(self._index)
            run.hooks.fire("on_before_optimizer_step", self._optimizer)

    def _noting(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def noting() -> Any:
            self._loss = closure()
            self._before_step()  # the gradients are those of this call
            return self._loss

        return noting

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Let only this optimizer's parameters require gradients inside the block.

        Args:
            sync_grad: Whether ranks exchange gradients in the block; False while accumulating.
        """
        window = self._run.engine.window
        context = window(sync_grad) if window is not None else None
        self._run.module.toggle_optimizer(self)
        try:
            with context or nullcontext():
                yield
        finally:
            self._run.module.untoggle_optimizer(self)

    def __repr__(self) -> str:
        return f"Lightning{self._optimizer!r}"
