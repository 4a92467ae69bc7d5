"""Look into checkpoints, check them, and import those of PyTorch Lightning: ``python -m lt_core.checkpoint``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from lt_core.checkpoint.format import reading
from lt_core.checkpoint.format.lightning_import import import_lightning
from lt_core.checkpoint.format.safetensors_io import save_checkpoint
from lt_core.checkpoint.runs import RunMark
from lt_interface.errors import CheckpointError, LTError, Problem

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a file is damaged or cannot be read.

    Args:
        arguments: The command line; the process's own if None.
    """
    parser = argparse.ArgumentParser(prog="python -m lt_core.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print what a checkpoint says of itself")
    show.add_argument("files", nargs="+", metavar="file")
    show.add_argument("--weights", action="store_true", help="list the weights, too; reads the whole file")
    verify = commands.add_parser("verify", help="check every byte of a checkpoint")
    verify.add_argument("files", nargs="+", metavar="file")
    take = commands.add_parser("import", help="write a checkpoint of PyTorch Lightning as one of this package")
    take.add_argument("file", help="the .ckpt file; nothing in it is run")
    take.add_argument("to", nargs="?", help="the new file; beside the old one, with .safetensors, if left out")
    given = parser.parse_args(arguments)
    if given.command == "import":
        return _attempt(given.file, lambda path: _import(path, given.to))
    act = _verify if given.command == "verify" else lambda path: _show(path, given.weights)
    return max([_attempt(path, act) for path in given.files])


def _attempt(path: str, act: Any) -> int:
    """Print the lines of one file, or what is wrong with it; return the exit status."""
    try:
        for line in act(path):
            print(line)
    except (LTError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _verify(path: str) -> Iterator[str]:
    reading.verify(path)
    yield f"{path}: whole, {_size(path)}"


def _show(path: str, weights: bool) -> Iterator[str]:
    header = reading.peek(path)
    progress = header.get("progress") or {}
    yield f"{path}: {_size(path)}"
    written = [f"{name} {version}" for name, version in (header.get("versions") or {}).items() if version]
    rest = "closed" if progress.get("epoch_closed", True) else f"open after {progress.get('batch', 0)} batches"
    rows = {
        "written by": ", ".join(written),
        "progress": f"step {progress.get('step', 0)}, epoch {progress.get('epoch', 0)} ({rest})",
        "run": _run(RunMark.read(header.get("run"))),
        "holds": ", ".join(header.get("keys") or ()),
    }
    for name, text in rows.items():
        if text:
            yield f"  {name:<11}{text}"
    if weights:
        yield from _weights(reading.load(path).get("state_dict") or {})


def _run(mark: RunMark | None) -> str:
    if mark is None:
        return ""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mark.first_start))
    return f"{mark.id}, begun {began}"


def _weights(state: Mapping[str, Any]) -> Iterator[str]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    width = max(map(len, tensors), default=0)
    for name, value in tensors.items():
        yield f"  {name:<{width}}  {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    yield f"  {sum(value.numel() for value in tensors.values()):,} numbers in {len(tensors)} tensors"


def _import(path: str, to: str | None) -> Iterator[str]:
    target = os.path.splitext(path)[0] + ".safetensors" if to is None else to
    with suppress(LTError):  # an older pickle has no header that can be looked at
        if reading.peek(path).get("versions", {}).get("lt_core"):
            yield f"{path}: this is a checkpoint of this package already. Use it as it is."
            return
    tree = import_lightning(path)
    if os.path.exists(target):
        raise CheckpointError(Problem(target, "there is such a file already", fix="Name another one."))
    save_checkpoint(tree, target)
    counts = {key: len(tree.get(key) or ()) for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")}
    parts = ", ".join(f"{count} {key}" for key, count in counts.items())
    progress = tree["progress"]
    yield f"{target}: {parts}; step {progress['step']}, epoch {progress['epoch']}"
    yield f'Go on with trainer.fit(model, ckpt_path="{target}"). Random states and the place in the data begin anew.'


def _size(path: str) -> str:
    count = os.path.getsize(path)
    return f"{count:,} bytes" if count < 1 << 20 else f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
