"""Export a module's forward for use without Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lt_interface.errors import ConfigError, Problem, nearest

if TYPE_CHECKING:
    from lt_core.module import LightningModule

__all__ = ["to_onnx", "to_torchscript"]


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Switch to evaluation without gradients or trainer, and put every submodule's own mode back."""
    parts: list[Any] = list(module.modules())
    modes = [(m, m.training) for m in parts]
    ours = [(m, m._trainer_ref) for m in parts if hasattr(m, "_trainer_ref")]
    for m, _ in ours:
        m._exporting, m._trainer_ref = True, None
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, ref in ours:
            m._exporting, m._trainer_ref = False, ref
        for part, mode in modes:
            part.training = mode


def _sample(module: LightningModule, sample: Any, argument: str, method: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of ``forward``, on the module's device and in its format."""
    from lt_core.model.example import placed

    if sample is None:
        sample = module.example_input_array
    if sample is None:
        where, got = f"{type(module).__name__}.{method}", f"neither {argument} nor self.example_input_array"
        fix = f"Pass {argument}=..., or set self.example_input_array in __init__."
        raise ConfigError(Problem(where, "an input of forward is needed", got, fix))
    sample = placed(module, sample)
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)), {}


def to_onnx(module: LightningModule, file_path: Any = None, input_sample: Any = None, **kwargs: Any) -> Any:
    """Export ``forward`` to ONNX.

    Args:
        module: The module.
        file_path: Where to write, or None.
        input_sample: Arguments of ``forward``; the module's ``example_input_array`` if None.
        kwargs: Given to ``torch.onnx.export``.

    Returns:
        What ``torch.onnx.export`` returns.

    Raises:
        ConfigError: If there is no input, or ONNX is not installed.
    """
    positional, named = _sample(module, input_sample, "input_sample", "to_onnx")
    if named:
        kwargs["kwargs"] = {**named, **kwargs.get("kwargs", {})}
    target = file_path if file_path is None or hasattr(file_path, "write") else str(file_path)
    try:
        with _evaluating(module):
            return torch.onnx.export(module, positional, target, **kwargs)
    except ImportError as error:
        fix = "Run: pip install onnx onnxscript"
        problem = Problem(f"{type(module).__name__}.to_onnx", "ONNX must be installed", str(error), fix)
        raise ConfigError(problem) from error


def to_torchscript(
    module: LightningModule, file_path: Any = None, method: str = "script", example_inputs: Any = None, **kwargs: Any
) -> Any:
    """Compile ``forward`` to TorchScript.

    Args:
        module: The module.
        file_path: Where to write it too, if given.
        method: ``"script"`` or ``"trace"``.
        example_inputs: Arguments of ``forward`` to trace; the module's ``example_input_array`` if None.
        kwargs: Given to ``torch.jit.script`` or ``torch.jit.trace``.

    Returns:
        The scripted module.

    Raises:
        ConfigError: If there is no input to trace, or no such method.
    """
    where = f"{type(module).__name__}.to_torchscript(method={method!r})"
    if method not in ("script", "trace"):
        fix = nearest(str(method), ["script", "trace"])
        raise ConfigError(Problem(where, 'method must be "script" or "trace"', fix=fix))
    with _evaluating(module):
        if method == "script":
            scripted = torch.jit.script(module, **kwargs)
        else:
            positional, named = _sample(module, example_inputs, "example_inputs", "to_torchscript")
            inputs: dict[str, Any] = {"example_kwarg_inputs": named} if named else {"example_inputs": positional}
            scripted = torch.jit.trace(module, **inputs, **kwargs)  # type: ignore[no-untyped-call]
    if file_path is not None:
        torch.jit.save(scripted, str(file_path))
    return scripted
