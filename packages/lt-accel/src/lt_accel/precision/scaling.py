"""Scale the loss, so that gradients in 16 bits do not vanish, and skip the steps in which they overflow.

The arithmetic is torch's own `torch.amp.GradScaler`. What is added is its bookkeeping: gradients are unscaled once,
whoever asks first; a step says whether it was made; the scale changes once a batch however many optimizers there are,
since the others still hold gradients of the old scale; and an optimizer that is fused on a GPU, which looks for
overflow in its own kernel, is not waited for.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from lt_interface import CheckpointError, MisconfigurationException, Problem

__all__ = ["LossScaling"]

_WHERE = 'Trainer(precision="16-mixed")'
_NUMBERS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")  # of torch's state
_PATIENCE = 40  # halvings that bring torch's first scale, 2**16, to 2**-24, the smallest number of float16
_ALWAYS = (
    f"{_WHERE}: {_PATIENCE} steps in a row were skipped, since their gradients are inf or nan at every scale. "
    "Pass detect_anomaly=True to find where that begins."
)


class LossScaling:
    """Loss scale of a run, with what was unscaled and stepped in the running batch.

    Args:
        scaler: Torch's scaler, enabled, which holds the scale.

    Attributes:
        scaler: The same.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self._several = False
        self._scaled = 0  # how many losses were scaled so far
        self._unscaled: dict[int, Optimizer] = {}  # those whose gradients have their true size and wait for their step
        self._stepped: dict[int, int] = {}  # optimizer -> `_scaled` at its last step
        self._skipped: dict[int, int] = {}  # optimizer -> how many of its steps in a row were skipped
        self._late: tuple[Any, Tensor] | None = None  # a fused step's finding, on its way here
        self._uncounted = False  # whether a step that was counted turned out to be skipped

    def prepare(self, optimizers: Sequence[Optimizer]) -> Callable[[], None]:
        """Take the optimizers of a run, and return what ends a batch.

        Args:
            optimizers: All of them.

        Raises:
            MisconfigurationException: If one computes its gradients several times a step, or has complex parameters.
        """
        for optimizer in optimizers:
            if any(p.is_complex() for group in optimizer.param_groups for p in group["params"]):
                rule = "torch's loss scale divides no complex gradients"
                got = f"complex parameters in {type(optimizer).__name__}"
                raise MisconfigurationException(Problem(_WHERE, rule, got, 'Write precision="bf16-mixed".'))
            if _needs_closure(optimizer):
                rule = "a loss scale needs an optimizer that steps once for each backward pass"
                got = f"{type(optimizer).__name__}, which calls its closure itself"
                raise MisconfigurationException(Problem(_WHERE, rule, got, 'Write precision="bf16-mixed".'))
        self._several = len(optimizers) > 1
        # What a run left behind that ended between unscaling and stepping.
        self._unscaled.clear()
        self._stepped.clear()
        self._skipped.clear()
        self.scaler._per_optimizer_states.clear()
        return self.end_batch

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale."""
        self._scaled += 1
        for key, optimizer in list(self._unscaled.items()):
            if not _holds_any(optimizer):  # cleared in place of a step: what comes now is new
                del self._unscaled[key]
                self._keep_finding(key)
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size, unless they have it.

        Raises:
            MisconfigurationException: If they come from a loss that was not scaled.
        """
        key = id(optimizer)
        if key in self._unscaled or not _has_gradients(optimizer):
            return
        if not self._scaled:
            rule = "gradients must come from a loss that was scaled"
            fix = "Call self.manual_backward(loss) in place of loss.backward()."
            raise MisconfigurationException(Problem(_WHERE, rule, fix=fix))
        if self._stepped.get(key) == self._scaled:  # they were unscaled for the step before
            self.scaler._check_inf_per_device(optimizer)
            self._state(key)["stage"] = OptState.UNSCALED
        else:
            self.scaler.unscale_(optimizer)
        self._unscaled[key] = optimizer

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None, **kwargs: Any) -> bool:
        """Step an optimizer unless its gradients overflowed; return whether a step is to be counted.

        Raises:
            MisconfigurationException: If its gradients come from a loss that was not scaled.
        """
        if closure is not None:
            closure()
        if not _has_gradients(optimizer):  # a batch without a loss
            optimizer.step(**kwargs)
            return True
        key = id(optimizer)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            if self._stepped.get(key) == self._scaled or not self._scaled:
                self.unscale(optimizer)
            self.scaler.step(optimizer, **kwargs)
            counts = self._count_late(key)
        else:
            self.unscale(optimizer)
            counts = not any(found.item() for found in self._found(key))
            if counts:
                optimizer.step(**kwargs)
        self._unscaled.pop(key, None)
        self._stepped[key] = self._scaled
        self._skipped[key] = 0 if counts else self._skipped.get(key, 0) + 1
        if self._skipped[key] == _PATIENCE:
            warnings.warn(_ALWAYS, stacklevel=2)
        if self._several:
            self._keep_finding(key)  # it may step again
        else:
            self.scaler.update()
        return counts

    def end_batch(self) -> None:
        """Change the scale by what was found in the batch, where a step did not do so already."""
        self._unscaled.clear()
        if self.scaler._per_optimizer_states:
            self.scaler.update()

    def _keep_finding(self, key: int) -> None:
        """Keep what was found in an optimizer's gradients for the batch's end, apart from what is found in its next."""
        states: Any = self.scaler._per_optimizer_states
        states[key, self._scaled, len(states)] = states.pop(key)

    def _state(self, key: int) -> dict[str, Any]:
        state: dict[str, Any] = self.scaler._per_optimizer_states[key]
        return state

    def _found(self, key: int) -> list[Tensor]:
        """Return a number for each device, above 0 where a gradient of the optimizer is inf or nan."""
        return list(self._state(key)["found_inf_per_device"].values())

    def _count_late(self, key: int) -> bool:
        """Return whether a fused step counts: on a GPU, whether the one before it was made.

        Waiting for this one would hold up the GPU. So a step that was skipped is counted, and the next one is not.
        """
        found = self._found(key)
        if self._several or not all(f.is_cuda for f in found):
            return not any(f.item() for f in found)
        counts = not self._skipped_late()
        if found:
            total = found[0] if len(found) == 1 else torch.stack([f.to(found[0].device) for f in found]).sum()
            here = torch.empty((), dtype=total.dtype, pin_memory=True)
            here.copy_(total, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(total.device))
            self._late = event, here
        return counts

    def _skipped_late(self) -> bool:
        """Return whether a step that was counted was skipped, and forget it."""
        skipped, self._uncounted = self._uncounted, False
        if self._late is not None:
            (event, here), self._late = self._late, None
            event.synchronize()
            skipped = skipped or bool(here.item())
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, its growth, and whether the next step is not counted."""
        self._uncounted = self._skipped_late()
        return {**self.scaler.state_dict(), **({"uncounted": True} if self._uncounted else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, or torch's own state of a scaler; an empty one changes nothing.

        Raises:
            CheckpointError: If it is damaged.
        """
        problem = _damage(state)
        if problem is not None:
            raise CheckpointError(problem)
        state = dict(state)
        self._uncounted = bool(state.pop("uncounted", False))
        if state:
            self.scaler.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**LossScaling(self.scaler).__dict__, "_uncounted": self._skipped_late()}


def _damage(state: Any) -> Problem | None:
    """Return what is wrong with a saved state; None if nothing is."""
    rule = "the state of the loss scale in the checkpoint must be whole"
    fix = "Take an older checkpoint, or leave the entry out to begin with a new scale."
    if not isinstance(state, Mapping):
        return Problem(_WHERE, rule, f"{state!r:.80} of type {type(state).__name__}", fix)
    wrong = [name for name in _NUMBERS if set(state) - {"uncounted"} and not _fits(name, state.get(name))]
    got = ", ".join(f"{name}={state[name]!r:.80}" if name in state else f"no {name}" for name in wrong)
    return Problem(_WHERE, rule, got, fix) if wrong else None


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, int | float) and (value >= 0 if name == "_growth_tracker" else value > 0)


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _holds_any(optimizer: Optimizer) -> bool:
    """Return whether a gradient is there that is not zero throughout."""
    gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
    return any(bool((g._values() if g.is_sparse else g).any()) for g in gradients if g is not None)


def _needs_closure(optimizer: Optimizer) -> bool:
    """Return whether ``optimizer.step`` cannot do without a closure, as LBFGS."""
    try:
        parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    except (TypeError, ValueError):
        return False
    return isinstance(optimizer, torch.optim.LBFGS) or (
        parameter is not None and parameter.default is inspect.Parameter.empty
    )
