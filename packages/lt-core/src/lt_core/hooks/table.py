"""The one table of hooks, compiled for a run into flat tuples of bound methods.

A hook that nobody overrides is an empty tuple: the loop's ``for`` over it costs nothing.
``python -m lt_core.hooks`` prints the table for the documentation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial, wraps
from itertools import product
from types import MethodType
from typing import TYPE_CHECKING, Any

from lt_core.callback import Callback, is_default
from lt_core.metrics import slot
from lt_core.metrics import store as m
from lt_core.state.timing import hook_action, timed
from lt_interface.errors import Problem

if TYPE_CHECKING:
    from lt_core.hooks.handlers import Handler
    from lt_core.metrics.results import Metrics

__all__ = [
    "HOOKS",
    "Hook",
    "HookTable",
    "bind",
    "declared",
    "hook_problems",
    "layer_hooks",
    "method_of",
    "overrides",
    "signature_of",
    "table_markdown",
]

CALLBACKS_MODULE = "callbacks, module"
DATA_CALLBACKS_MODULE = "data module, callbacks, module"
MONITORS_LAST = "callbacks, module, monitoring callbacks"
CALLBACKS = "callbacks"
MODULE = "module"
CALLBACKS_DATA = "callbacks, data module"
MODULE_CALLBACKS = "module, callbacks"
DATA_OR_MODULE = "data module or else module"

WITHIN_STEP = frozenset({slot.BEFORE_ZERO_GRAD, slot.BEFORE_BACKWARD, slot.AFTER_BACKWARD, slot.BEFORE_STEP})


@dataclass(frozen=True)
class Hook:
    """One hook: its arguments, its place and its order.

    Attributes:
        name: The method's name.
        args: What the loop passes; callbacks get ``trainer, pl_module`` before it.
        order: Who is called, first to last.
        scope: The scope of ``self.log`` inside it.
        when: When it runs, for the documentation.
        returns: What its return value means, if anything.
    """

    name: str
    args: tuple[str, ...] = ()
    order: str = CALLBACKS_MODULE
    scope: int = m.FORBIDDEN
    when: str = ""
    returns: str = ""


_DONE = "all batches are done; epoch metrics are readable"


def _transfer(name: str, *args: str) -> Hook:
    return Hook(name, args, DATA_OR_MODULE, when="every batch, before its batch_start hook", returns="the batch")


def _evaluation(stage: str) -> list[Hook]:
    first, start, end = m.EVAL_START, m.EVAL_EPOCH_START, m.EVAL_EPOCH_END
    before, after = m.EVAL_BATCH_START, m.EVAL_BATCH_END
    if stage == "predict":
        first = start = end = before = after = m.FORBIDDEN
    batch = ("batch", "batch_idx", "dataloader_idx")
    hooks = [
        Hook(f"on_{stage}_model_eval", order=MODULE, when="before the loop: put the model in evaluation mode"),
        Hook(f"on_{stage}_start", scope=first, when="the loop begins"),
        Hook(f"on_{stage}_epoch_start", scope=start, when="an epoch of the loop begins"),
        Hook(f"on_{stage}_batch_start", batch, scope=before, when="before a step"),
        Hook(f"on_{stage}_batch_end", ("outputs", *batch), scope=after, when="after a step"),
        Hook(f"on_{stage}_epoch_end", scope=end, when=_DONE),
        Hook(f"on_{stage}_end", when="epoch metrics are logged"),
        Hook(f"on_{stage}_model_train", order=MODULE, when="after the loop; without it each submodule's mode returns"),
    ]
    return hooks[:-1] if stage == "predict" else hooks


_HOOKS = [
    Hook("configure_callbacks", order=MODULE, when="once, first", returns="a callback or a list of them"),
    Hook("prepare_data", order="data module, module", when="once a node, before setup"),
    Hook("setup", ("stage",), DATA_CALLBACKS_MODULE, when="every process, before the model is built"),
    Hook("configure_model", order=MODULE, when="after setup, on the right device and in the right precision"),
    Hook("on_load_checkpoint", ("checkpoint",), MODULE_CALLBACKS, when="a checkpoint was read"),
    Hook("configure_optimizers", (), MODULE, when="after the parameters are final", returns="optimizers, schedulers"),
    Hook("on_fit_start", when="all is built; weights and counters are restored"),
    Hook("on_sanity_check_start", order=CALLBACKS, when="before the sanity check"),
    Hook("on_sanity_check_end", order=CALLBACKS, when="after the sanity check"),
    Hook("on_train_start", scope=m.TRAIN_START, when="training begins"),
    Hook("on_train_epoch_start", scope=m.TRAIN_EPOCH_START, when="an epoch begins; not when resumed inside it"),
    _transfer("on_before_batch_transfer", "batch", "dataloader_idx"),
    _transfer("transfer_batch_to_device", "batch", "device", "dataloader_idx"),
    _transfer("on_after_batch_transfer", "batch", "dataloader_idx"),
    Hook(
        "on_train_batch_start",
        ("batch", "batch_idx"),
        scope=m.TRAIN_BATCH_START,
        when="before a step",
        returns="-1 from the module ends the epoch, on every rank",
    ),
    Hook(
        "on_before_zero_grad",
        ("optimizer",),
        scope=slot.BEFORE_ZERO_GRAD,
        when="after training_step, before gradients are cleared",
    ),
    Hook("on_before_backward", ("loss",), scope=slot.BEFORE_BACKWARD, when="before the backward pass"),
    Hook("on_after_backward", scope=slot.AFTER_BACKWARD, when="after the backward pass"),
    Hook(
        "on_before_optimizer_step",
        ("optimizer",),
        scope=slot.BEFORE_STEP,
        when="gradients are complete, unscaled, not clipped",
    ),
    Hook("on_train_batch_end", ("outputs", "batch", "batch_idx"), scope=m.TRAIN_BATCH_END, when="after a step"),
    Hook("on_train_epoch_end", (), MONITORS_LAST, m.TRAIN_EPOCH_END, _DONE),
    Hook("on_train_end", when="training is over"),
    Hook("on_validation_model_zero_grad", order=MODULE, when="before validation inside fit"),
    *_evaluation("validation"),
    *_evaluation("test"),
    *_evaluation("predict"),
    Hook("on_save_checkpoint", ("checkpoint",), when="a checkpoint is about to be written"),
    Hook("on_fit_end", when="the model is back on the CPU"),
    Hook("on_exception", ("exception",), CALLBACKS_DATA, when="anything raised"),
    Hook("teardown", ("stage",), DATA_CALLBACKS_MODULE, when="last, also after an exception"),
]
HOOKS: dict[str, Hook] = {hook.name: hook for hook in _HOOKS}

# Called one by one by the parts that own them, never through the compiled tuples.
_OWN_CALLERS = {"configure_callbacks", "prepare_data", "configure_model", "configure_optimizers", "on_load_checkpoint"}
_OWN_CALLERS |= {"on_save_checkpoint", "on_validation_model_train", "on_test_model_train"}
_OWN_CALLERS |= {hook.name for hook in _HOOKS if hook.order == DATA_OR_MODULE}


def overrides(obj: Any, name: str) -> bool:
    """Return whether ``obj`` has a ``name`` of its own, in its class or on the instance; None counts as nothing."""
    own = getattr(obj, "__dict__", {})
    if name in own:
        return own[name] is not None
    mine = getattr(type(obj), name, None)
    return mine is not None and not is_default(mine)


def method_of(owner: Any, name: str) -> Any:
    """Return an object's method for a hook or step: its default where the object has None in its place, if any."""
    found = getattr(owner, name, None)
    default = next((vars(base)[name] for base in type(owner).__mro__ if is_default(vars(base).get(name))), None)
    return partial(default, owner) if found is None and default is not None else found


def layer_hooks(module: Any) -> list[str]:
    """Return under which names a module creates its layers: configure_model, or its old name, or both."""
    functions: dict[Any, str] = {}
    for name in ("configure_model", "configure_sharded_model"):
        function = getattr(module, name)
        while function is not None and not is_default(function):
            inner = getattr(function, "__wrapped__", getattr(function, "func", None))  # of a wrapper, or a partial
            if inner is None:
                functions.setdefault(getattr(function, "__func__", function), name)
            function = inner
    return list(functions.values())


def declared(kind: type, name: str) -> bool:
    """Return whether a class inherits a default of the hook ``name``: only then is its own ever called."""
    return any(is_default(vars(base).get(name)) for base in kind.__mro__)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return what a callable takes: its own arguments if it lists them, else those of what it wraps.

    Raises:
        TypeError, ValueError: If nothing is known of it, as of a builtin.
    """
    own = inspect.signature(function, follow_wrapped=False)
    inner = getattr(function, "__wrapped__", None)
    if inner is None or all(p.kind is not p.VAR_POSITIONAL for p in own.parameters.values()):
        return own
    wrapped = signature_of(inner)
    if isinstance(function, MethodType) and not isinstance(inner, MethodType):  # what is bound takes self no more
        return wrapped.replace(parameters=list(wrapped.parameters.values())[1:])
    return wrapped


def bind(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any] | None:
    """Return ``function`` so that it takes the arguments ``names`` by position, or None if it cannot.

    A shorter form is fed by its parameters' names if we know them all, else by position.
    """
    try:
        signature = signature_of(function)
        loose = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # a builtin or a mock: trust it
        return function
    with suppress(TypeError):
        signature.bind(*names)
        return function
    fed = _fed(function, signature, names)
    with suppress(TypeError):
        loose.bind(*names)  # what it wraps may take self, and it is no method
        return fed or function
    return fed


def _fed(function: Callable[..., Any], signature: inspect.Signature, names: Sequence[str]) -> Callable[..., Any] | None:
    """Return ``function`` so that it gets those of the arguments ``names`` that a shorter signature takes, or None."""
    parameters = list(signature.parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = {p.name: names.index(p.name) for p in parameters if p.name in names}
    by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    leading = list(places) == by_place == list(names[: len(by_place)])  # a wrapper may look at arguments by their place
    if required and set(required) <= set(names) and not leading:
        return wraps(function)(lambda *a: function(**{name: a[place] for name, place in places.items()}))
    if len(required) <= len(names) and all(p.kind is not p.KEYWORD_ONLY for p in parameters if p.name in required):
        return wraps(function)(lambda *a: function(*a[: len(by_place)]))
    return None


def hook_problems(module: Any, datamodule: Any, callbacks: Iterable[Any]) -> list[Problem]:
    """Return one problem for every overridden hook that the loop's call cannot bind."""
    owners: list[tuple[Any, tuple[str, ...]]] = [(module, ()), (datamodule, ())]
    owners += [(c, ("trainer", "pl_module")) for c in callbacks]
    found = []
    for (owner, prefix), hook in product(owners, HOOKS.values()):
        if not declared(type(owner), hook.name) or not overrides(owner, hook.name):
            continue
        args = (*prefix, *hook.args)
        if bind(getattr(owner, hook.name), args) is None:
            where = f"{type(owner).__name__}.{hook.name}"
            got = f"def {hook.name}{inspect.signature(getattr(type(owner), hook.name))}"
            fix = f"Write: def {hook.name}({', '.join(('self', *args))})"
            found.append(Problem(where, "the trainer cannot call this hook with its arguments", got, fix))
    return found


class HookTable:
    """Tuples of ready-to-call hooks of one run, each under the hook's name.

    Attributes:
        module_train_batch_start: The module's own ``on_train_batch_start``, apart from the
            others because its return value counts; None if it has none.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        datamodule: Any,
        callbacks: Sequence[Callback],
        handlers: Sequence[Handler],
        profiler: Any,
        metrics: Metrics,
    ) -> None:
        self._lead = trainer, module
        self._datamodule, self._callbacks, self._handlers = datamodule, callbacks, handlers
        self._profiler, self._metrics = profiler, metrics
        self.module_train_batch_start: Callable[..., Any] | None = None
        for name, hook in HOOKS.items():
            if name not in _OWN_CALLERS:
                setattr(self, name, tuple(self._compile(hook)))

    def _compile(self, hook: Hook) -> list[Callable[..., Any]]:
        """Return the bound methods of one hook in the table's order."""
        groups: dict[str, list[Callable[..., Any]]] = {
            "callbacks": [],
            "monitoring callbacks": [],
            "module": self._method(self._lead[1], hook, "LightningModule"),
            "data module": self._method(self._datamodule, hook, "LightningDataModule"),
        }
        for callback in self._callbacks:
            last = callback.monitoring and hook.order == MONITORS_LAST
            groups["monitoring callbacks" if last else "callbacks"] += self._method(callback, hook, "Callback")
        groups["callbacks"] += [h.bound(*self._lead) for h in self._handlers if h.hook == hook.name]
        if hook.name == "on_train_epoch_end" and self._metrics.train.world_size > 1:
            groups["module"] += [self._metrics.train.sync]  # what was logged just now, before anything monitors it
        if hook.name == "on_train_batch_start":
            own = groups.pop("module")
            self.module_train_batch_start = own[0] if own else None
        return [f for owner in hook.order.split(", ") for f in groups.get(owner, [])]

    def _method(self, owner: Any, hook: Hook, kind: str) -> list[Callable[..., Any]]:
        """Return an object's method for a hook, taking the hook's own arguments, if it is to be called at all."""
        # model_eval hooks have a default that must run; all other defaults do nothing.
        default_runs = hook.name.endswith(("_model_eval", "_model_zero_grad"))
        if not declared(type(owner), hook.name) or not (default_runs or overrides(owner, hook.name)):
            return []
        leads = kind == "Callback"
        bound = bind(method_of(owner, hook.name), ("trainer", "pl_module", *hook.args) if leads else hook.args)
        if bound is None:
            return []  # refused with the other problems before the run began
        call = partial(bound, *self._lead) if leads else bound
        return [timed(self._profiler, call, hook_action(owner, hook.name))]

    def fire(self, name: str, *args: Any) -> None:
        """Call one hook on everybody who has it, in the table's order."""
        inside = HOOKS[name].scope not in WITHIN_STEP or self._metrics.current.scope in slot.STEP_SCOPES
        with self._inside(name) if inside else nullcontext():
            for f in getattr(self, name):
                f(*args)

    def fire_each(self, name: str, *args: Any) -> list[BaseException]:
        """Call one hook on everybody who has it, also after one of them raised; return what was raised."""
        found: list[BaseException] = []
        with self._inside(name):
            for f in getattr(self, name):
                try:
                    f(*args)
                except BaseException as error:
                    found.append(error)
        return found

    def _inside(self, name: str) -> AbstractContextManager[None]:
        """Give ``self.log`` the scope of a hook."""
        return self._metrics.current.inside(name, HOOKS[name].scope)


def table_markdown() -> str:
    """Return the hook table in Markdown, as docs/hooks.md holds it."""
    scopes = {getattr(m, k): k.lower().replace("_", " ") for k in m.__all__ if k.isupper()}
    rows = ["| hook | arguments | called, in order | when | returns | `self.log` |", "|---|---|---|---|---|---|"]
    for h in HOOKS.values():
        scope = "as the step" if h.scope in WITHIN_STEP else scopes.get(h.scope, "")
        args = ", ".join(f"`{a}`" for a in h.args)
        rows.append(f"| `{h.name}` | {args} | {h.order} | {h.when} | {h.returns} | {scope} |")
    return "\n".join(rows) + "\n"
