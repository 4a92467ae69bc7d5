"""States of torchmetrics objects, gathered over the ranks by this package's exchange.

Their own function begins collectives of torch at once: where one rank alone calls ``compute()`` these meet other ones,
and the job hangs or dies. This one lets all ranks meet before, so that they get an error that names the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lt_accel.collectives import ProcessGroupCollectives
from lt_accel.group import joined

__all__ = ["gather_states", "let_gather", "take_back"]

_DIMS = 64  # which no tensor of torch exceeds
_FORMATS = sorted({each for each in vars(torch).values() if isinstance(each, torch.dtype)}, key=str)


def let_gather(modules: Iterable[nn.Module]) -> list[Any]:
    """Make metric objects that have no function of their own gather by `gather_states`; return them.

    Args:
        modules: Modules, metric objects among them or not.
    """
    objects: list[Any] = [each for each in modules if getattr(each, "dist_sync_fn", each) is None]
    for each in objects:
        each.dist_sync_fn = gather_states
    return objects


def take_back(objects: Iterable[Any]) -> None:
    """Give metric objects back the function that they came with.

    Args:
        objects: What `let_gather` returned.
    """
    for each in objects:
        if each.dist_sync_fn is gather_states:
            each.dist_sync_fn = None


def gather_states(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Return the ranks' tensors, which may differ in shape and format: a rank that saw no sample has an empty one.

    Args:
        tensor: This rank's; it stands in the list as it is, so that gradients reach it.
        group: The process group; all ranks if None.
    """
    peers = joined()
    if peers is None:  # the process group is another one than this package's
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, tensor.detach(), group)
    else:
        among = "all" if group is None else group
        collectives = ProcessGroupCollectives(peers)
        if group is None:
            collectives.barrier("the compute() of a metric object")
        kind = [_FORMATS.index(tensor.dtype), tensor.nbytes, tensor.ndim, *tensor.shape, *[0] * (_DIMS - tensor.ndim)]
        kinds = collectives.all_gather(torch.tensor(kind, device=tensor.device), among).tolist()
        sent = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        rows = collectives.all_gather(nn.functional.pad(sent, (0, max(k[1] for k in kinds) - len(sent))), among)
        found = [
            row[:size].clone().view(_FORMATS[dtype]).reshape(shape[:dims])
            for row, (dtype, size, dims, *shape) in zip(rows, kinds, strict=True)
        ]
    found[dist.get_rank(group)] = tensor
    return found
