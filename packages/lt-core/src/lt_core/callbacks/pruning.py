"""Prune a module's parameters as it is trained, with torch.nn.utils.prune.

While it trains, torch keeps each pruned parameter as ``<name>_orig`` and ``<name>_mask``. Files have plain parameters
with zeros in them, and optimizer states by the same names, so that they load without pruning; masks, and what they
hide, are this callback's state, with which a resumed run goes on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from lt_core.callback import Callback
from lt_core.callbacks.restore_best import RestoreBest
from lt_core.callbacks.weight_averaging import Averager
from lt_core.checkpoint.format.signature import plain_name
from lt_core.config.parsers import is_whole
from lt_core.hooks.declared import ModuleHooks
from lt_core.notices import info
from lt_core.state.progress import TrainerFn
from lt_interface.errors import ConfigError, Problem, nearest, raise_problems

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["ModelPruning"]

_METHODS: dict[str, Any] = {
    "l1_unstructured": prune.L1Unstructured,
    "ln_structured": prune.LnStructured,
    "random_structured": prune.RandomStructured,
    "random_unstructured": prune.RandomUnstructured,
}
_ORIG, _MASK = "_orig", "_mask"


class ModelPruning(Callback):
    """Callback that prunes parameters at epochs' ends, again and again, by one of torch's methods.

    Each time ``amount`` of what is left is pruned. When training ends, the zeros become part of the weights. What a
    method draws at random is the same on all ranks and in a resumed run.

    Args:
        pruning_fn: ``"l1_unstructured"``, ``"random_unstructured"``, ``"ln_structured"`` or ``"random_structured"``, a
            subclass of torch's `BasePruningMethod`, or a function of ``(module, name, amount)`` such as torch's.
        parameters_to_prune: Pairs of a layer and a parameter's name; empty means those of ``parameter_names``.
        parameter_names: Which parameters of all layers; None means ``"weight"`` and ``"bias"``.
        use_global_unstructured: Whether the smallest of all parameters together are pruned, and not of each one.
        amount: How much: a fraction, a number of values, or a function of the epoch that returns either.
        apply_pruning: Whether to prune, or a function of the epoch that says so.
        make_pruning_permanent: Whether the module ends with plain parameters.
        use_lottery_ticket_hypothesis: Whether what is left begins again with its first values, or a function of the
            epoch that says so.
        resample_parameters: Whether these are drawn anew, by the layers' ``reset_parameters``.
        pruning_dim: For structured methods, the dimension along which slices are pruned.
        pruning_norm: For ``"ln_structured"``, the norm's order.
        verbose: 0; 1 reports how much is pruned in all, 2 of each parameter, too.
        prune_on_train_epoch_end: Whether an epoch's end is the moment, or the end of its validation.

    Raises:
        ConfigError: If an argument cannot be meant; all problems at once.

    Example:
        >>> ModelPruning("l1_unstructured", amount=lambda epoch: 0.5 if epoch == 3 else 0.0).amount_at(3)
        0.5
    """

    #: Parameters of a layer that are pruned where none are named.
    PARAMETER_NAMES: ClassVar[tuple[str, ...]] = ("weight", "bias")
    in_weights: ClassVar[bool] = True

    def __init__(
        self,
        pruning_fn: Literal["l1_unstructured", "ln_structured", "random_structured", "random_unstructured"]
        | Callable[..., Any],
        parameters_to_prune: Iterable[tuple[nn.Module, str]] | None = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        method = _method(pruning_fn)
        problems = _problems(pruning_fn, method, use_global_unstructured, pruning_dim, pruning_norm)
        names = [parameter_names] if isinstance(parameter_names, str) else parameter_names
        if not callable(amount):
            problems += _amount_problems("ModelPruning", amount)
        if verbose not in (0, 1, 2):
            problems.append(
                Problem(f"ModelPruning(verbose={verbose!r})", "this must be 0, 1 or 2", fix="Write verbose=1.")
            )
        pairs = list(parameters_to_prune or ())
        if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in pairs):
            where, rule = "ModelPruning(parameters_to_prune)", "this must be pairs of a layer and a parameter's name"
            problems.append(Problem(where, rule, fix='Write [(model.layer, "weight")].'))
        raise_problems(problems)
        self._method, self._whole = method, use_global_unstructured
        self._given, self._parameter_names = pairs, names or list(self.PARAMETER_NAMES)
        self._amount, self._apply, self._lottery = amount, apply_pruning, use_lottery_ticket_hypothesis
        self._permanent, self._resample, self._verbose = make_pruning_permanent, resample_parameters, verbose
        self._on_train_epoch_end = prune_on_train_epoch_end
        self._options = {"dim": pruning_dim, "n": pruning_norm}
        self._targets: list[tuple[str, nn.Module, str]] = []  # of the running fit: path, layer, parameter
        self._originals: dict[str, nn.Module] = {}
        self._module: nn.Module | None = None
        self._state: dict[str, Any] | None = None

    def amount_at(self, epoch: int) -> int | float:
        """Return how much is pruned in an epoch.

        Args:
            epoch: The epoch, counted from 0.

        Raises:
            ConfigError: If the function of the amount returns what is none.
        """
        if not callable(self._amount):
            return self._amount
        amount = self._amount(epoch)
        raise_problems(_amount_problems(f"ModelPruning: the function of the amount, in epoch {epoch}", amount, ""))
        return amount

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, what they hide, and the first values where they are needed again."""
        if self._state is not None or self._module is None:
            return self._state or {}
        masks, values = {}, {}
        for path, layer, name in _pruned(self._module):
            masks[_join(path, name)] = layer._buffers[name + _MASK].bool()  # type: ignore[union-attr]
            values[_join(path, name)] = layer._parameters[name + _ORIG].detach()  # type: ignore[union-attr]
        firsts = {}
        if self._lottery:
            firsts = {_join(p, name): getattr(self._originals[p], name).detach() for p, _, name in self._targets}
        return {"masks": masks, "values": values, "firsts": firsts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned, unless `on_load_checkpoint` did so."""
        if self._module is None:
            self._state = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what needs other weights beside the pruning.

        Raises:
            ConfigError: If there is such a callback; all problems at once.
        """
        if stage != "fit":
            return
        averagers = [type(each).__name__ for each in trainer.callbacks if isinstance(each, Averager)]
        rule = "an average of weights that are pruned one after the other is none that is pruned"
        problems = [Problem("ModelPruning", rule, name, "Leave one of them out.") for name in averagers]
        if not self._permanent and any(isinstance(each, RestoreBest) for each in trainer.callbacks):
            rule, fix = "the best weights are plain parameters", "Write make_pruning_permanent=True."
            problems.append(Problem("ModelPruning(make_pruning_permanent=False)", rule, "RestoreBest beside it", fix))
        raise_problems(problems)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Prune as it was pruned, where training goes on."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._begin(pl_module)
        state = (checkpoint.get("callbacks") or {}).get(self.state_key)
        if state:
            self._restore(pl_module, state)
            _rename(checkpoint, {_join(path, name): _join(path, name) + _ORIG for path, _, name in _pruned(pl_module)})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the parameters, and go on where an earlier fit of the trainer left off.

        Raises:
            ConfigError: If a layer or a parameter is missing; all problems at once.
        """
        state, self._state = self._state, None
        if self._module is None:
            self._begin(pl_module)
            if state and trainer.global_step:
                self._restore(pl_module, state)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if this is the moment and the epoch's data has ended."""
        if self._on_train_epoch_end and trainer.epoch_is_over:
            self._run(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if this is the moment."""
        if not self._on_train_epoch_end and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the zeros part of the weights, if that is asked for."""
        if self._permanent:
            self._state = _copied(self.state_dict())
            self.make_pruning_permanent(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep what another fit goes on with."""
        if self._module is not None:
            self._state = _copied(self.state_dict())
            self._module, self._targets, self._originals = None, [], {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save plain parameters with zeros in them."""
        state: Any = copy.copy(checkpoint.get("state_dict"))
        names = {}
        for path, _, name in _pruned(pl_module):
            key = _join(path, name)
            names[key + _ORIG] = key
            if state is not None and key + _ORIG in state:
                state[key] = state.pop(key + _ORIG) * state.pop(key + _MASK)
        if names and state is not None:
            checkpoint["state_dict"] = state
            _rename(checkpoint, names)

    def filter_parameters_to_prune(
        self, parameters_to_prune: Sequence[tuple[nn.Module, str]] = ()
    ) -> Sequence[tuple[nn.Module, str]]:
        """Return those parameters that are pruned, of the ones that were asked for; override it to choose.

        Args:
            parameters_to_prune: Pairs of a layer and a parameter's name.
        """
        return parameters_to_prune

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Give a module plain parameters, with zeros where they were pruned.

        Args:
            module: The module.
        """
        for _, layer, name in list(_pruned(module)):
            prune.remove(layer, name)  # type: ignore[no-untyped-call]

    def _begin(self, module: nn.Module) -> None:
        """Find the parameters, and keep the layers as they are now, for their first values."""
        paths = {id(layer): plain_name(path) for path, layer in module.named_modules()}
        layers = [
            each for each in module.modules() if not isinstance(each, (ModuleHooks, nn.ModuleDict, nn.ModuleList))
        ]
        pairs = self._given or [
            (layer, name) for name in self._parameter_names for layer in layers if _has(layer, name)
        ]
        raise_problems(self._missing(module, paths, layers))
        pairs = list(self.filter_parameters_to_prune(pairs))
        self._check_amount(pairs)
        self._module, self._targets = module, [(paths[id(layer)], layer, name) for layer, name in pairs]
        _refresh(module)
        if self._lottery:
            self._originals = {path: copy.deepcopy(layer) for path, layer, _ in self._targets}

    def _missing(self, module: nn.Module, paths: Mapping[int, str], layers: list[nn.Module]) -> list[Problem]:
        """Return which layers and parameters that are to be pruned the module does not have."""
        where, kind, problems = "ModelPruning(parameters_to_prune)", type(module).__name__, list[Problem]()
        for layer, name in self._given:
            if id(layer) not in paths:
                got = repr(layer) if isinstance(layer, str) else type(layer).__name__
                problems.append(
                    Problem(where, f"a layer must be one of {kind}", got, "Pass the layer itself: model.layer.")
                )
            elif not _has(layer, name):
                own = [each.removesuffix(_ORIG) for each, _ in layer.named_parameters(recurse=False)]
                fix = f"{nearest(str(name), own)} It has: {', '.join(own) or 'none'}.".strip()
                problems.append(Problem(where, f"{paths[id(layer)] or kind} has no parameter {name!r}", fix=fix))
        known = sorted({n for layer in layers for n, _ in layer.named_parameters(recurse=False)})
        lost = [n for n in self._parameter_names if not self._given and not any(_has(layer, n) for layer in layers)]
        if self._parameter_names == list(self.PARAMETER_NAMES) and len(lost) < len(self.PARAMETER_NAMES):
            lost = []  # that layers have no bias is no mistake
        for name in lost:
            fix = f"{nearest(name, known)} They have: {', '.join(known)}.".strip()
            problems.append(Problem(f"ModelPruning(parameter_names={name!r})", f"no layer of {kind} has it", fix=fix))
        return problems

    def _check_amount(self, pairs: Sequence[tuple[nn.Module, str]]) -> None:
        """Refuse a number of values that the parameters do not have.

        Raises:
            ConfigError: If it is such a number.
        """
        owns = [layer._parameters.get(name + _ORIG, layer._parameters.get(name)) for layer, name in pairs]
        dim = self._options["dim"] if getattr(self._method, "PRUNING_TYPE", None) == "structured" else None
        sizes = [own.numel() if dim is None else own.shape[dim] for own in owns if own is not None and not is_lazy(own)]
        most = sum(sizes) if self._whole else min(sizes, default=0)
        if sizes and not callable(self._amount) and self._amount > most:
            raise ConfigError(self._too_much(f"{self._amount} of {most}"))

    def _too_much(self, got: str) -> Problem:
        rule, fix = "no more values can be pruned than are left", "Write a fraction of these, as amount=0.2."
        return Problem(f"ModelPruning(amount={self._amount!r})", rule, got, fix)

    def _run(self, trainer: Trainer, module: nn.Module) -> None:
        epoch = trainer.current_epoch
        amount = self.amount_at(epoch) if _asked(self._apply, epoch) else 0
        if not amount:
            return
        _refresh(module)  # what is the smallest now, not as of the last forward
        before = self._counts()
        with trainer.own_random_state():
            try:
                self.apply_pruning(amount)
            except ValueError as error:  # torch's own words, for a number of values that are not left
                if not is_whole(amount):
                    raise
                raise ConfigError(self._too_much(f"in epoch {epoch}, {error}")) from error
            if _asked(self._lottery, epoch):
                self.apply_lottery_ticket_hypothesis()
        _refresh(module)
        if self._verbose:
            self._report(amount, before)

    def apply_pruning(self, amount: int | float) -> None:
        """Prune some more of the parameters.

        Args:
            amount: How much of what is left.
        """
        options: dict[str, Any] = {key: value for key, value in self._options.items() if value is not None}
        if not isinstance(self._method, type):
            for _, layer, name in self._targets:
                self._method(layer, name, amount=amount)
            return
        taken = inspect.signature(self._method).parameters
        options = {key: value for key, value in {"amount": amount, **options}.items() if key in taken}
        if self._whole:
            pairs = [(layer, name) for _, layer, name in self._targets]
            prune.global_unstructured(pairs, pruning_method=self._method, **options)
            return
        for _, layer, name in self._targets:
            kind: Any = self._method
            scores = (
                {"importance_scores": None} if "importance_scores" in inspect.signature(kind.apply).parameters else {}
            )
            kind.apply(layer, name, **options, **scores)

    @torch.no_grad()
    def apply_lottery_ticket_hypothesis(self) -> None:
        """Give what is left its first values, or new ones."""
        fresh: dict[str, Any] = {}
        for path, layer, name in self._targets:
            if path not in fresh:
                fresh[path] = self._originals[path]
                if self._resample and hasattr(fresh[path], "reset_parameters"):
                    fresh[path] = copy.deepcopy(fresh[path])
                    fresh[path].reset_parameters()
            own = layer._parameters.get(name + _ORIG)
            if own is not None:
                own.copy_(getattr(fresh[path], name))

    def _restore(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Prune as a state says; what the masks hide is taken over, too, where the rest is as it was."""
        layers = {plain_name(path): layer for path, layer in module.named_modules()}
        for key, mask in state["masks"].items():
            path, _, name = key.rpartition(".")
            layer = layers[path]
            own = layer._parameters.get(name)
            if own is None:  # it is pruned
                continue
            kept, value = mask.to(own), state["values"][key].to(own)
            with torch.no_grad():
                if torch.equal(own * kept, value * kept):
                    own.copy_(value)
            prune.custom_from_mask(layer, name, kept)  # type: ignore[no-untyped-call]
        for path, _, name in self._targets if self._lottery else ():
            first = state["firsts"].get(_join(path, name))
            if first is not None:
                getattr(self._originals[path], name).data.copy_(first)

    def _counts(self) -> list[tuple[int, int]]:
        """Return how many values of each parameter are pruned, and how many it has."""
        masks = [layer._buffers.get(name + _MASK) for _, layer, name in self._targets]
        sizes = [(layer._parameters.get(name + _ORIG, layer._parameters.get(name))) for _, layer, name in self._targets]
        return [
            (0 if mask is None else int((mask == 0).sum()), 0 if own is None else own.numel())
            for mask, own in zip(masks, sizes, strict=True)
        ]

    def _report(self, amount: int | float, before: list[tuple[int, int]]) -> None:
        after, name = self._counts(), getattr(self._method, "__name__", str(self._method))
        lines = [
            ("all parameters", tuple(map(sum, zip(*before, strict=True))), tuple(map(sum, zip(*after, strict=True))))
        ]
        if self._verbose > 1:
            lines += [
                (_join(path, parameter), was, now)
                for (path, _, parameter), was, now in zip(self._targets, before, after, strict=True)
            ]
        for what, was, now in lines:
            info(f"ModelPruning: {name}, amount {amount}: of {what}, {_share(was)} were pruned, now {_share(now)}.")


def _method(given: Any) -> Any:
    """Return the class of a pruning method that a name or torch's own function stands for; others as they are."""
    name = getattr(given, "__name__", None) if callable(given) else given
    if isinstance(given, str) or getattr(prune, str(name), None) is given:
        return _METHODS.get(str(name).lower(), given)
    return given


def _problems(given: Any, method: Any, whole: bool, dim: int | None, norm: int | None) -> list[Problem]:
    """Return why a method cannot be used like this."""
    where, problems = f"ModelPruning(pruning_fn={given!r})", list[Problem]()
    if isinstance(method, str) or not callable(method) or (isinstance(method, type) and not _is_method(method)):
        fix = f"{nearest(str(given), _METHODS)} Names are {', '.join(_METHODS)}.".strip()
        return [Problem(where, "this must be a name, a subclass of BasePruningMethod or a function", fix=fix)]
    kind = getattr(method, "PRUNING_TYPE", None)
    if whole and kind != "unstructured":
        rule = "only an unstructured method can look at all parameters together"
        problems.append(Problem(where, rule, fix="Write use_global_unstructured=False."))
    if method in (prune.LnStructured, prune.RandomStructured) and dim is None:
        problems.append(Problem(where, "a structured method needs pruning_dim", fix="Write pruning_dim=0."))
    if method is prune.LnStructured and norm is None:
        problems.append(Problem(where, "this method needs pruning_norm", fix="Write pruning_norm=2."))
    return problems


def _is_method(kind: type) -> bool:
    return issubclass(kind, prune.BasePruningMethod)


def _amount_problems(where: str, amount: Any, argument: str = "amount") -> list[Problem]:
    """Return what is wrong with an amount."""
    fraction = isinstance(amount, float) and 0 <= amount <= 1
    if fraction or (is_whole(amount) and amount >= 0):
        return []
    rule = "an amount is a fraction from 0.0 to 1.0, or a number of values"
    place = f"{where}({argument}={amount!r})" if argument else where
    return [Problem(place, rule, "" if argument else repr(amount), "Write amount=0.5.")]


def _asked(choice: bool | Callable[[int], bool], epoch: int) -> bool:
    return bool(choice(epoch) if callable(choice) else choice)


def _share(counts: Any) -> str:
    pruned, size = counts
    return f"{pruned} of {size} ({pruned / max(size, 1):.2%})"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _has(layer: nn.Module, name: Any) -> bool:
    """Return whether a layer has a parameter, pruned or not."""
    own = layer._parameters
    return isinstance(name, str) and (own.get(name) is not None or own.get(name + _ORIG) is not None)


def _pruned(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield each pruned parameter of a module: its layer's path, the layer, its name."""
    for path, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield plain_name(path), layer, str(hook._tensor_name)


@torch.no_grad()
def _refresh(module: nn.Module) -> None:
    """Compute what layers see of their pruned parameters, as their next forward would."""
    for _, layer, name in _pruned(module):
        own, mask = layer._parameters[name + _ORIG], layer._buffers[name + _MASK]
        setattr(layer, name, own * mask)  # type: ignore[operator]


def _rename(checkpoint: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Give parameters other names in a checkpoint's optimizer states."""
    for state in checkpoint.get("optimizer_states") or ():
        for entries in (state.get("state"), state.get("other_formats")):
            for old, new in names.items() if entries else ():
                if old in entries:
                    entries[new] = entries.pop(old)
        for group in state.get("param_groups", ()):
            group["params"] = [names.get(name, name) for name in group["params"]]


def _copied(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    copied = partial(torch.Tensor.to, device="cpu", copy=True)
    return {key: {name: copied(value) for name, value in tensors.items()} for key, tensors in state.items()}
