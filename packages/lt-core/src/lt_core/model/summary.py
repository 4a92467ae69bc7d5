"""Count what a module consists of: parameters, bytes, modes, and with an example input sizes and FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from lt_core.model.example import placed
from lt_core.notices import warn
from lt_interface.errors import ConfigError, Problem
from lt_interface.nested import items_of

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

__all__ = ["LayerRow", "ModuleSummary", "estimate_memory", "human_count", "plain_table", "summarize", "totals"]

UNKNOWN = "?"


@dataclass
class LayerRow:
    """Row of a summary: one submodule.

    Attributes:
        name: Its path inside the module.
        type: The name of its class.
        parameters: How many numbers its parameters hold; 0 while they are lazy.
        training: Whether it is in train mode; None for loose parameters.
        in_size: The shape of what it takes; ``?`` where the example did not reach it.
        out_size: The shape of what it gives.
        flops: Floating-point operations in the example's forward pass.
    """

    name: str
    type: str
    parameters: int
    training: bool | None
    in_size: Any = UNKNOWN
    out_size: Any = UNKNOWN
    flops: int = 0


@dataclass
class ModuleSummary:
    """Summary of a module.

    Attributes:
        rows: Its submodules down to the depth that was asked for.
        total_parameters: Numbers in all parameters; shared ones count once.
        trainable_parameters: Those of them that are trained.
        model_size: Their size in MB (10^6 bytes).
        modes: How many submodules are in train and in eval mode.
        total_flops: Floating-point operations of one forward pass of the example; 0 without one.
        has_example: Whether sizes and FLOPs were measured.
    """

    rows: list[LayerRow]
    total_parameters: int
    trainable_parameters: int
    model_size: float
    modes: dict[str, int]
    total_flops: int = 0
    has_example: bool = False

    def columns(self) -> dict[str, list[str]]:
        """Return the table's cells by the column's name."""
        modes = {True: "train", False: "eval", None: "n/a"}
        table = {
            " ": [str(i) for i in range(len(self.rows))],
            "Name": [row.name for row in self.rows],
            "Type": [row.type for row in self.rows],
            "Params": [human_count(row.parameters) for row in self.rows],
            "Mode": [modes[row.training] for row in self.rows],
        }
        if self.has_example:
            table["FLOPs"] = [human_count(row.flops) for row in self.rows]
            table["In sizes"] = [str(row.in_size) for row in self.rows]
            table["Out sizes"] = [str(row.out_size) for row in self.rows]
        return table

    def totals(self) -> list[tuple[str, str]]:
        """Return value and meaning of each line below the table."""
        flops = self.total_flops if self.has_example else None
        return totals(self.total_parameters, self.trainable_parameters, self.model_size, self.modes, flops)

    def __str__(self) -> str:
        return plain_table(self.columns(), self.totals())


def totals(
    total: int,
    trainable: int,
    size: float,
    modes: Mapping[str, int],
    flops: int | None = None,
    memory: Mapping[str, float | None] | None = None,
) -> list[tuple[str, str]]:
    """Return value and meaning of each line below a summary's table.

    Args:
        total: Numbers in all parameters.
        trainable: Those of them that are trained.
        size: Their size in MB.
        modes: How many submodules are in train and in eval mode.
        flops: Floating-point operations of a forward pass; None where nothing was measured.
        memory: What training keeps on the device, as of `estimate_memory`.
    """
    lines = [
        (human_count(trainable), "Trainable params"),
        (human_count(total - trainable), "Non-trainable params"),
        (human_count(total), "Total params"),
        (f"{size:,.3f}", "Total estimated model params size (MB)"),
        (str(modes["train"]), "Modules in train mode"),
        (str(modes["eval"]), "Modules in eval mode"),
    ]
    if flops is not None:
        lines.append((human_count(flops), "Total FLOPs"))
    known = {name: UNKNOWN if part is None else f"{part:,.3f}" for name, part in (memory or {}).items()}
    return lines + [(part, f"{name} in memory (MB)") for name, part in known.items()]


def plain_table(columns: Mapping[str, list[str]], below: list[tuple[str, str]]) -> str:
    """Return a summary as text.

    Args:
        columns: The cells by the column's name.
        below: Value and meaning of each line below them.
    """
    lines = _plain_table(columns) if any(columns.values()) else []
    width = max(len(value) for value, _ in below)
    return "\n".join(lines + [f"{value:<{width}}  {meaning}" for value, meaning in below])


def _plain_table(columns: Mapping[str, list[str]]) -> list[str]:
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    header = " | ".join(f"{name:<{width}}" for name, width in widths.items())
    rule = "-" * len(header)
    rows = zip(*columns.values(), strict=True)
    body = [" | ".join(f"{c:<{w}}" for c, w in zip(row, widths.values(), strict=True)).rstrip() for row in rows]
    return [header.rstrip(), rule, *body, rule]


def human_count(number: int) -> str:
    """Return a count, a ``number``, in at most four characters and a unit: ``1.2 M``; below a thousand as it is."""
    value, unit = float(number), ""
    for unit in ("", "K", "M", "B", "T", "Q"):
        if round(value, 1) < 1000 or unit == "Q":
            break
        value /= 1000
    if not unit:
        return str(number)
    return f"{value:.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def summarize(
    module: nn.Module, max_depth: int = 1, context: AbstractContextManager[Any] | None = None
) -> ModuleSummary:
    """Return the summary of a module.

    Args:
        module: If it has an ``example_input_array``, one forward pass of it measures sizes and
            FLOPs: in eval mode, without gradients, with the random state put back.
        max_depth: How deep submodules are listed; -1 all, 0 none.
        context: Entered around that forward pass, such as the precision's.

    Raises:
        ConfigError: If the depth is below -1.
    """
    if not isinstance(max_depth, int) or max_depth < -1:
        raise ConfigError(Problem(f"ModelSummary(max_depth={max_depth!r})", "must be -1 (all), 0 (none) or a depth"))
    children = {name: child for name, child in module.named_modules() if name}
    listed = {name: child for name, child in children.items() if max_depth == -1 or name.count(".") < max_depth}
    rows = {name: LayerRow(name, type(m).__name__, _count(m.parameters()), m.training) for name, m in listed.items()}
    known = [p for p in module.parameters() if not isinstance(p, UninitializedParameter)]
    if len(known) < len(list(module.parameters())):
        warn("The model has lazy parameters that no forward pass has given a size yet: the summary counts them as 0.")
    training = sum(child.training for child in children.values())
    summary = ModuleSummary(
        rows=list(rows.values()),
        total_parameters=_count(known),
        trainable_parameters=_count(p for p in known if p.requires_grad),
        model_size=sum(p.numel() * p.element_size() for p in known) * 1e-6,
        modes={"train": training, "eval": len(children) - training},
    )
    example = getattr(module, "example_input_array", None)
    if example is not None:
        summary.has_example = True
        summary.total_flops = _measure(module, example, rows, context or nullcontext())
    loose = _count(module.parameters(recurse=False))
    if loose and max_depth != 0:
        summary.rows.append(LayerRow("other params", "n/a", loose, None, "n/a", "n/a"))
    return summary


def estimate_memory(module: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, float | None]:
    """Return what training keeps on the device besides activations, in MB (10^6 bytes).

    Args:
        module: The module.
        optimizers: Its optimizers, of each of which a step is tried on tensors without contents.

    Returns:
        The sizes of parameters, buffers, gradients and optimizer states, and of all; None for what cannot be known.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    states = [_state_bytes(optimizer) for optimizer in optimizers]
    found = {
        "Parameters": _bytes(module.parameters()),
        "Buffers": _bytes(module.buffers()),
        "Gradients": _bytes(trained),
        "Optimizer states": None if None in states else sum(filter(None, states)),
    }
    whole = None if None in found.values() else sum(filter(None, found.values()))
    return {name: None if size is None else size * 1e-6 for name, size in {**found, "All of these": whole}.items()}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if not is_lazy(t))


def _state_bytes(optimizer: Optimizer) -> int | None:
    """Return the bytes of the states that an optimizer will make; None if a step needs more than gradients."""
    kind: Any = type(optimizer)
    groups: list[dict[str, Any]] = []
    try:
        takes = signature(kind).parameters
        options = {name: value for name, value in optimizer.defaults.items() if name in takes and name != "fused"}
        for group in optimizer.param_groups:
            like = [nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in group["params"]]
            for parameter in like:
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            groups.append({**group, "params": like, **({"fused": None} if "fused" in group else {})})
        trial = kind(groups, **options)
        trial.step()
    except Exception:  # whatever an optimizer of the user's own needs
        return None
    return _bytes(leaf for state in trial.state.values() for leaf in state.values() if isinstance(leaf, Tensor))


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters if not isinstance(p, UninitializedParameter))


def _measure(module: nn.Module, example: Any, rows: dict[str, LayerRow], context: AbstractContextManager[Any]) -> int:
    """Run the example through the module, fill in sizes and FLOPs, and return the total of FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode

    from lt_core.state import rng

    example = placed(module, example)
    modules = dict(module.named_modules())
    modes = {child: child.training for child in modules.values()}
    watched = [name for name in rows if not isinstance(modules[name], torch.jit.ScriptModule)]
    handles = [_watch(modules[name], rows[name]) for name in watched]
    counter = FlopCounterMode(display=False)
    try:
        module.eval()
        with rng.isolate(), torch.no_grad(), context, counter:
            if isinstance(example, tuple | list):
                module(*example)
            elif isinstance(example, dict):
                module(**example)
            else:
                module(example)
    finally:
        for child, training in modes.items():
            child.training = training
        for handle in handles:
            handle.remove()
    by_path = counter.get_flop_counts()
    for name, row in rows.items():
        row.flops = sum(by_path.get(f"{type(module).__name__}.{name}", {}).values())
    return int(counter.get_total_flops())


def _watch(child: nn.Module, row: LayerRow) -> RemovableHandle:
    def remember(_: nn.Module, inputs: Any, output: Any) -> None:
        if row.in_size == UNKNOWN:  # a shared module shows its first call
            row.in_size, row.out_size = _size(inputs[0] if len(inputs) == 1 else list(inputs)), _size(output)

    return child.register_forward_hook(remember)


def _size(value: Any) -> Any:
    """Return a tensor's shape as a list, the list of a collection's sizes, or ``?``."""
    if isinstance(value, Tensor):
        return list(value.shape)
    items = items_of(value)
    return UNKNOWN if items is None else [_size(item) for item in items.values()]
