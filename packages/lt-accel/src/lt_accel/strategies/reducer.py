"""The exchange of gradients: torch's reducer over the parameters that are trained, made anew when these are others.

Torch's reducer learns its parameters once. A parameter that is unfrozen later is in none of its buckets, so that each
rank would train its own; one that is frozen later is waited for without end. Here the flags of all parameters are
compared before each exchange, which costs less than a microsecond for ten of them. Where optimizers take turns, or a
loss may leave parameters out anyway, a frozen one counts as unused, and only one that is new makes another reducer.

Under manual optimization a user may call ``loss.backward()``, of which the reducer does not know beforehand. The first
gradient of such a pass is noticed, and all of them are averaged at its end: slower, and right. A reducer that looks for
unused parameters has counted these as used then, and would demand their gradients of the next pass: that gets another.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lt_accel.strategies.same import FREEZE_ALIKE, check_trainable
from lt_interface import MisconfigurationException, Problem

if TYPE_CHECKING:
    from lt_accel.strategies.ddp import DDPStrategy

__all__ = ["GradientExchange", "PackedState"]

_MB = 1 << 20
_SHOWN = 8
_torch: Any = dist  # whose stubs leave the reducer out


@dataclass(frozen=True)
class PackedState:
    """State of a hook, on its way to a rank.

    Attributes:
        data: The state, pickled: that of PowerSGD can be read only where a process group stands.
    """

    data: bytes


class GradientExchange:
    """Exchange of a module's gradients in its backward passes.

    Args:
        module: The module, the same on every rank.
        strategy: The strategy, for its options.
        several: Whether several optimizers take turns, so that a loss depends on a part of the parameters.

    Attributes:
        open: Whether gradients were computed that were not exchanged yet.
        expected: Whether the engine runs a backward pass, so that its gradients are cared for.
        held_back: How many contexts are open in which gradients are added up without an exchange.
    """

    def __init__(self, module: nn.Module, strategy: DDPStrategy, several: bool) -> None:
        self._module, self._strategy = module, strategy
        self._finds_unused = strategy.find_unused_parameters or several
        self._strayed = False
        self._named = list(module.named_parameters())
        self._parameters = [p for _, p in self._named]
        self._seen: list[bool] = []
        self._held: list[str] = []
        self._reducer: Any = None
        self._logger: Any = None
        self._delays = False
        by_hand = not getattr(module, "automatic_optimization", True)
        self._noticing = [_on_gradient(p, self._notice) for p in self._parameters if _may_train(p)] if by_hand else []
        self.open = self.expected = False
        self.held_back = 0
        self._begin()

    def prepare(self, loss: Tensor) -> None:
        """Make the reducer wait for the gradients of a backward pass.

        Args:
            loss: What the pass begins from.
        """
        if self._strayed or [p.requires_grad for p in self._parameters] != self._seen:
            self._change()
        reducer = self._reducer
        if reducer is None:
            return
        self._strategy.mark()
        reducer.prepare_for_forward()
        reducer.prepare_for_backward([loss] if self._finds_unused and not self._strategy.static_graph else [])
        if self._delays and loss.requires_grad:
            # In the first pass over a static graph torch counts, and exchanges all at the end.
            self._delays = False
            loss.register_hook(self._at_end)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Check that the backward pass has given each gradient; after the first one, order them as they come.

        Raises:
            MisconfigurationException: If a parameter got none.
        """
        self.open = False
        if self._reducer is None:
            return
        try:
            self._reducer._check_reducer_finalized()
        except RuntimeError as error:
            raise self._unused(error) from error
        self._reducer._rebuild_buckets()  # after the first pass; then it does nothing

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._noticing:
            handle.remove()
        self._noticing = []
        self._end()

    def _end(self) -> None:
        if self._reducer is not None:
            self._reducer._remove_autograd_hooks()
            self._reducer = self._logger = None

    def _at_end(self, gradient: Tensor) -> None:
        _queue(self._reducer._delay_all_reduce)

    def _notice(self, parameter: Tensor) -> None:
        """Average the gradients at the end of a backward pass that the user began."""
        if self.held_back:
            self.open = True
        elif not self.expected:
            self.expected = True
            _queue(self._average_all)

    def _average_all(self) -> None:
        self._strategy.mark()
        _average([p for p in self._parameters if _may_train(p)], lambda p: p.requires_grad)
        self.expected, self._strayed = False, self._finds_unused

    def _change(self) -> None:
        """Exchange what is trained now, if it is not what the reducer holds; a frozen one may be unused, too."""
        before, self._seen = self._seen, [p.requires_grad for p in self._parameters]
        held = {name for name, p in self._named if p.requires_grad}
        if not self._strayed and held <= set(self._held) and (self._finds_unused or held == set(self._held)):
            return
        changed = [pair for pair, was in zip(self._named, before, strict=True) if was != pair[1].requires_grad]
        frozen = [p for _, p in changed if not p.requires_grad]
        self._strategy.meet(_described(changed), FREEZE_ALIKE)  # before any exchange that a rank alone would begin
        if self.open and frozen:
            _average(frozen)
        self._end()
        self._begin()

    def _begin(self) -> None:
        check_trainable(self._module, self._strategy.collectives)
        self._seen = [p.requires_grad for p in self._parameters]
        self._held = [name for name, p in self._named if p.requires_grad]
        self._strayed = False
        if not self._held:
            return
        strategy, parameters = self._strategy, [p for p in self._parameters if p.requires_grad]
        tables = _tables(self._module)
        if self._finds_unused and not strategy.find_unused_parameters:
            # One that no loss depends on: where all others are used, torch would say that it looked in vain.
            parameters.append(nn.Parameter(torch.zeros_like(parameters[-1].detach().reshape(-1)[:1])))
        sparse = [id(p) in tables for p in parameters]
        cap = int(strategy.bucket_cap_mb * _MB)
        # As DistributedDataParallel does: one bucket until the order is known in which gradients come, if it will be.
        rebuilds = strategy.static_graph or not self._finds_unused
        first = [sys.maxsize] if rebuilds else [_MB, cap]
        buckets, limits = _torch._compute_bucket_assignment_by_size(parameters, first, sparse)
        self._reducer = reducer = _torch.Reducer(
            parameters,
            list(reversed(buckets)),
            list(reversed(limits)),
            dist.group.WORLD,
            sparse,
            cap,
            self._finds_unused,
            strategy.gradient_as_bucket_view,
            dict(enumerate([*self._held, ""][: len(parameters)])),
            _MB,
        )
        self._logger = _torch.Logger(reducer)  # which the reducer calls without asking, and does not keep alive
        reducer.set_logger(self._logger)
        self._delays = strategy.static_graph
        if strategy.static_graph:
            reducer._set_static_graph()
        self._add_hook(reducer)

    def _add_hook(self, reducer: Any) -> None:
        """Let the user's hook exchange each bucket."""
        hook, state = self._strategy.comm_hook, self._strategy.comm_state
        if hook is None:
            return
        if isinstance(state, PackedState):
            state = self._strategy.comm_state = pickle.loads(state.data)
        if isinstance(hook, _torch.BuiltinCommHookType):
            _torch._register_builtin_comm_hook(reducer, hook)
            return
        # PowerSGD keeps errors and factors by the number of a bucket: others now, so it begins anew.
        for kept in ("error_dict", "p_memory_dict", "q_memory_dict"):
            getattr(state, kept, {}).clear()
        if hasattr(state, "error_dict"):
            state.iter = 0
        _torch._register_comm_hook(reducer, state, hook)

    def _unused(self, error: RuntimeError) -> MisconfigurationException:
        """Return the error for parameters that got no gradient."""
        listed = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        names = [self._held[int(i)] for i in listed[1].split()] if listed else []
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        strategy = self._strategy
        return MisconfigurationException(
            Problem(
                f"{type(self._module).__name__}.training_step",
                "the loss must depend on every parameter that is trained, on every rank",
                f"no gradient for {', '.join(names[:_SHOWN]) or 'some'}{more} on rank {strategy.world.rank}",
                f'Write strategy="{strategy.name}_find_unused_parameters_true", or '
                f"{type(strategy).__name__}(find_unused_parameters=True); or freeze what is not used.",
            )
        )


def _queue(call: Any) -> None:
    """Call something at the end of the backward pass that is running."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(call)


def _may_train(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _on_gradient(parameter: nn.Parameter, call: Any) -> Any:
    """Call something after each gradient of a parameter, also of one that is unfrozen later; return the handle."""
    trained = parameter.requires_grad
    parameter.requires_grad_(True)  # torch attaches a hook to no other
    handle = parameter.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(trained)
    return handle


def _tables(module: nn.Module) -> set[int]:
    """Return the parameters whose gradients are sparse."""
    return {id(m.weight) for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse}


def _described(changed: list[tuple[str, nn.Parameter]]) -> str:
    """Return what is changed where parameters, given by name, are frozen or unfrozen."""
    parts = []
    for word, trained in (("freezing", False), ("unfreezing", True)):
        names = [name for name, p in changed if p.requires_grad == trained]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        parts += [f"{word} {', '.join(names[:_SHOWN])}{more}"] if names else []
    return ", ".join(parts) or "other parameters to train"


def _average(parameters: list[nn.Parameter], gives: Callable[[nn.Parameter], bool] = lambda p: True) -> None:
    """Average gradients one by one, outside of torch's reducer; one that no rank gives stays as it is.

    Args:
        parameters: The same ones on every rank.
        gives: Returns whether this rank has a gradient of a parameter to give, if it has any.
    """
    own = [p.grad if gives(p) else None for p in parameters]
    has = torch.tensor([float(grad is not None) for grad in own], device=parameters[0].device)
    dist.all_reduce(has)
    for parameter, given, ranks in zip(parameters, own, has.tolist(), strict=True):
        if ranks:
            parameter.grad = (
                torch.zeros_like(parameter) if given is None else given.to_dense() if given.is_sparse else given
            )
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
