"""Process group of this process: joined once, kept from one call of the trainer to the next.

A group costs seconds to make, and one that is made again on the same port races with the store of the one before. So
the store stays for the life of the process, and the group for as long as no run fails. After an error the group is
left without waiting, and the next one gets a name of its own in the same store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lt_accel.flags import Flags, flags_between
from lt_interface import ClusterEnvironment, MisconfigurationException, World

__all__ = ["join", "leave", "world_of"]


@dataclass
class _Joined:
    """What this process has joined.

    Attributes:
        store: Where the ranks find one another; None before the first group of ours.
        groups: How many groups were made in the store.
        group: The gloo group of `join`; None while there is none.
        flags: The flags of `join`.
        left: Groups for flags that were left; they are kept since to end one waits for flags on their way.
    """

    store: Any = None
    groups: int = 0
    group: Any = None
    flags: Flags | None = None
    left: list[Any] = field(default_factory=list)


_joined = _Joined()


def world_of(cluster: ClusterEnvironment | None) -> World:
    """Return the place of this process: the cluster's word, else what ``RANK`` and ``WORLD_SIZE`` say.

    Args:
        cluster: The scheduler that started this process, or None.
    """
    if cluster is not None:
        return cluster.world()
    rank, size = (int(os.environ.get(name) or default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or size)
    local_rank = int(os.environ.get("LOCAL_RANK") or rank % local_size)
    return World(rank, size, local_rank, local_size, rank // local_size, data_rank=rank, data_size=size)


def join(world: World, cluster: ClusterEnvironment | None, timeout: timedelta) -> tuple[Any, Flags]:
    """Join the other ranks, unless this process has; return a gloo group for barriers and flags, and the flags.

    A process group that the user made before is taken as it is.

    Args:
        world: The place of this process.
        cluster: The scheduler, for the address of rank 0; ``MASTER_ADDR`` and ``MASTER_PORT`` without one.
        timeout: How long a collective waits for the others.

    Raises:
        MisconfigurationException: If no address is known, or a group of another world stands.
    """
    if dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) != (world.rank, world.size):
        raise MisconfigurationException(
            f"torch.distributed: the process group must be of the same world as the run, rank {world.rank} of "
            f"{world.size}. Got rank {dist.get_rank()} of {dist.get_world_size()}. Destroy that group first."
        )
    if not dist.is_initialized():
        _joined.flags = None
        if _joined.store is None:
            _joined.store = next(rendezvous(_address(cluster), world.rank, world.size, timeout=timeout))[0]
        _joined.groups += 1
        store = PrefixStore(str(_joined.groups), _joined.store)
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    if _joined.flags is None:
        _joined.group = dist.new_group(backend="gloo", timeout=timeout)
        _joined.flags = flags_between(world, _joined.group, timeout.total_seconds())
    return _joined.group, _joined.flags


def leave() -> None:
    """Leave the other ranks without waiting for them, as after an error; a group that the user made stays.

    Where nobody holds the group any more its connections close, and ranks that wait for this one get an error.
    """
    if _joined.store is not None and dist.is_initialized():
        dist.destroy_process_group()
        _joined.left.append(_joined.group)
    if _joined.flags is not None:
        _joined.flags.close()
    _joined.group = _joined.flags = None


def _address(cluster: ClusterEnvironment | None) -> str:
    host = os.environ.get("MASTER_ADDR") if cluster is None else cluster.main_address
    port = os.environ.get("MASTER_PORT") if cluster is None else cluster.main_port
    if not host or not port:
        raise MisconfigurationException(
            f"ddp: ranks find one another at MASTER_ADDR and MASTER_PORT. Got {host!r} and {port!r}. "
            "Start the script with torchrun, or set both."
        )
    return f"tcp://{host}:{port}"
