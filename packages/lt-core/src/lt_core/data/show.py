"""Show one batch: pictures for images, else a table of shapes, types and ranges."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_core.data.nested import leaves
from lt_core.notices import say
from lt_core.state.rng import isolate
from lt_core.state.stage import STAGES
from lt_interface.errors import ConfigError, Problem, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lt_core.datamodule import LightningDataModule

__all__ = ["BatchTable", "check_stage", "first_batch", "show"]


class BatchTable(str):
    """Text that notebooks show as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def check_stage(stage: str) -> str:
    """Return the word in the name of a stage's loader: train, val, test or predict.

    Raises:
        ConfigError: If there is no such stage.
    """
    known = {word: s.prefix for s in STAGES for word in (s.prefix, str(s.fn))}
    if stage not in known:
        rule = f"stage must be one of {', '.join(s.prefix for s in STAGES)}"
        raise ConfigError(Problem(f"show_batch(stage={stage!r})", rule, fix=nearest(stage, known)))
    return known[stage]


def first_batch(datamodule: LightningDataModule, stage: str) -> Any:
    """Return the first batch of a stage's first loader, leaving all random states as they were.

    Raises:
        ConfigError: If the loader is empty.
    """
    with isolate():
        if datamodule.trainer is None:
            datamodule.prepare_data()
            # Whoever sets up for one of these two sets up for the other.
            datamodule.setup("fit" if stage in ("train", "val") else stage)
        loader = getattr(datamodule, f"{stage}_dataloader")()
        while True:
            if isinstance(loader, Mapping):
                loader = next(iter(loader.values()), ())
            elif isinstance(loader, (list, tuple)) and loader and next(_tensors(loader[0]), None) is None:
                loader = loader[0]  # a list of loaders; one of batches is a loader
            elif hasattr(loader, "iterables"):
                loader = loader.iterables
            else:
                break
        for batch in loader:
            return batch
    raise ConfigError(Problem(f"show_batch(stage={stage!r})", "there must be a batch to show", "an empty loader"))


def show(batch: Any, *, n: int = 16, path: Any = None, title: str = "") -> Figure | BatchTable:
    """Draw a batch of images, or describe any other.

    Args:
        batch: Tensors in any nesting of dicts, lists, tuples and dataclasses.
        n: The most pictures to show.
        path: Where to write the picture or the table, or None.
        title: A heading.

    Returns:
        A matplotlib figure or the table; the table is also printed outside notebooks.

    Raises:
        ConfigError: If the batch holds images and matplotlib is not installed.
    """
    images = next((t for _, t in _tensors(batch) if _are_images(t)), None)
    if images is not None:
        figure = _grid(images[:n], _labels(batch, images), title)
        if path is not None:
            figure.savefig(str(path))
        return figure
    table = BatchTable(_table(batch, title))
    if path is not None:
        Path(path).write_text(table + "\n", encoding="utf-8")
    elif not hasattr(builtins, "__IPYTHON__"):  # there the returned table is shown
        say(table)
    return table


def _tensors(value: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its path; numpy arrays count."""
    for path, leaf in leaves(value, name):
        if isinstance(leaf, Tensor):
            yield path, leaf
        elif hasattr(leaf, "__array__") and hasattr(leaf, "dtype") and leaf.dtype.kind in "biuf":
            yield path, torch.as_tensor(leaf)


def _are_images(t: Tensor) -> bool:
    """Return whether a tensor has the shape of pictures: (N, C, H, W) or (N, H, W, C), C in 1, 3, 4."""
    if t.ndim != 4 or t.is_complex() or len(t) == 0:
        return False
    first = t.shape[1] in (1, 3, 4) and min(t.shape[2:]) >= 4
    last = t.shape[3] in (1, 3, 4) and min(t.shape[1:3]) >= 4
    return first or last


def _labels(batch: Any, images: Tensor) -> list[str]:
    """Return a caption for each picture from the first tensor with one value a sample."""
    for _, t in _tensors(batch):
        if t is not images and t.ndim >= 1 and len(t) == len(images) and t.numel() == len(t):
            return [f"{v:.3g}" if isinstance(v, float) else str(v) for v in t.detach().reshape(-1).cpu().tolist()]
    return []


def _grid(images: Tensor, labels: list[str], title: str) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        fix = "Run: pip install 'lt-core[plot]'"
        raise ConfigError(Problem("show_batch", "matplotlib must be installed to draw images", fix=fix)) from error
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.4 * columns, 1.5 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, ax in enumerate(axes):
        ax.set_axis_off()
        if i < len(images):
            picture = _picture(images[i])
            ax.imshow(picture.numpy(), cmap="gray" if picture.ndim == 2 else None, vmin=0, vmax=1)
            if i < len(labels):
                ax.set_title(labels[i], fontsize=9)
    return figure


def _picture(image: Tensor) -> Tensor:
    """Return (H, W) or (H, W, C) between 0 and 1; values outside, as after normalisation, are stretched."""
    picture = image.detach().cpu()
    picture = picture.float() / 255 if picture.dtype is torch.uint8 else picture.float()
    if picture.shape[0] in (1, 3, 4) and min(picture.shape[1:]) >= 4:
        picture = picture.permute(1, 2, 0)
    low, high = float(picture.min()), float(picture.max())
    if low < 0 or high > 1:
        picture = (picture - low) / max(high - low, 1e-12)
    return picture[..., 0] if picture.shape[-1] == 1 else picture


def _table(batch: Any, title: str) -> str:
    rows = [("name", "shape", "dtype", "min", "max", "mean")]
    for name, t in _tensors(batch):
        shape = " x ".join(map(str, t.shape)) or "scalar"
        rows.append((name, shape, str(t.dtype).removeprefix("torch."), *_range(t)))
    if len(rows) == 1:
        return f"{title}\n{type(batch).__name__}: no tensors".strip()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, *lines] if title else lines)


def _range(t: Tensor) -> tuple[str, str, str]:
    if t.numel() == 0 or t.is_complex():
        return "", "", ""
    values = t.detach().double()
    return f"{values.min():.4g}", f"{values.max():.4g}", f"{values.mean():.4g}"
