"""Process group of this process: joined once, kept from one call of the trainer to the next.

A group costs seconds to make, and one that is made again on the same port races with the store of the one before. So
the store stays for the life of the process, and the group for as long as no run fails. After an error the group is
left without waiting, and the next one gets a name of its own in the same store: it is made once every rank has left the
one before and comes to it.
"""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from lt_accel.clusters.environment import EnvironmentCluster
from lt_accel.flags import shared_flags
from lt_accel.meeting import meet
from lt_accel.peers import Peers
from lt_interface import ClusterEnvironment, MisconfigurationException, World

__all__ = ["join", "joined", "leave", "second_group", "world_of"]

_SECONDS = 5.0


@dataclass
class _Joined:
    """What this process has joined.

    Attributes:
        store: Where the ranks find one another; None before the first group of ours.
        groups: How many groups were made in the store.
        peers: What `join` returned; None while there is none.
        backend: What the group of ours exchanges by; empty for one of the user's.
        group: Refers to the group that all this belongs to: the user may have put another one in its place.
        second: A group beside it, where one was asked for.
        left: Groups that were left, with their peers: to end one waits for what is on its way in it.
    """

    store: Any = None
    groups: int = 0
    peers: Peers | None = None
    backend: str = ""
    group: Callable[[], Any] = lambda: None
    second: Any = None
    left: list[tuple[Peers, Any]] = field(default_factory=list)


_joined = _Joined()


def joined() -> Peers | None:
    """Return what exchanges the flags and failures of the ranks that this process joined, None where it is alone."""
    return _joined.peers


def world_of(cluster: ClusterEnvironment | None) -> World:
    """Return the place of this process: the cluster's word, else what ``RANK`` and ``WORLD_SIZE`` say.

    Args:
        cluster: The scheduler that started this process, or None.
    """
    return (EnvironmentCluster() if cluster is None else cluster).world()


def join(world: World, cluster: ClusterEnvironment | None, timeout: timedelta, backend: str = "gloo") -> Peers:
    """Join the other ranks, unless this process has; return what exchanges their flags and failures.

    A process group that the user made before is taken as it is.

    Args:
        world: The place of this process.
        cluster: The scheduler, for the address of rank 0; ``MASTER_ADDR`` and ``MASTER_PORT`` without one.
        timeout: How long a collective waits for the others.
        backend: What exchanges tensors, in torch's words. A group of ours that exchanges by another is made anew.

    Raises:
        MisconfigurationException: If no address is known, or a group of another world stands.
    """
    if dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) != (world.rank, world.size):
        raise MisconfigurationException(
            f"torch.distributed: the process group must be of the same world as the run, rank {world.rank} of "
            f"{world.size}. Got rank {dist.get_rank()} of {dist.get_world_size()}. Destroy that group first."
        )
    if dist.is_initialized() and not _stands():
        _joined.peers, _joined.second, _joined.backend = None, None, ""
    elif dist.is_initialized() and _joined.backend not in ("", backend):
        leave()
    if not dist.is_initialized():
        # Its functions keep the default group of their import as a default: after that of a group it never closes.
        importlib.import_module("torch.distributed.nn.functional")
        _joined.peers, _joined.second, _joined.backend = None, None, backend
        if _joined.store is None:
            report: Callable[[], None] | None = getattr(cluster, "joins", None)
            if report is not None:
                report()
            _joined.store = meet(world, *_address(cluster), timeout)
        _joined.groups += 1
        store = PrefixStore(str(_joined.groups), _joined.store)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    _joined.group = weakref.ref(dist.group.WORLD)
    if _joined.peers is None:
        _joined.left = [each for each in _joined.left if not each[0].done()]
        group: Any = dist.new_group(backend="gloo", timeout=timeout)
        # A name of its own: of a group that the user made, several may be made peers one after another.
        store = PrefixStore(group.group_name, _get_default_store())
        _joined.peers = Peers(group, store, shared_flags(world, group, timeout.total_seconds()))
    return _joined.peers


def _stands() -> bool:
    """Return whether the process group that was joined is still torch's default one."""
    return dist.is_initialized() and _joined.group() is dist.group.WORLD


def second_group(device_type: str, timeout: timedelta) -> Any:
    """Return a group of all ranks beside the default one, for exchanges that must not be mixed up with its own.

    On cards it is the default one: there all of a rank's exchanges queue in one order, and another would queue beside.

    Args:
        device_type: Where the tensors lie.
        timeout: How long an exchange waits for the others.
    """
    if device_type != "cpu":
        return dist.group.WORLD
    if _joined.second is None:
        _joined.second = dist.new_group(backend="gloo", timeout=timeout)
    return _joined.second


def leave() -> None:
    """Leave the other ranks after an error, without waiting for those that have not; a group of the user's stays.

    Where nobody holds the group any more its connections close, and ranks that wait for this one get an error.
    """
    peers, _joined.peers, _joined.second = _joined.peers, None, None
    if peers is None:
        return
    peers.leave()
    if _joined.backend and _stands():
        # What this rank waits for ends as the failed one leaves. If not, the group is kept, since its end would wait.
        kept = None if peers.settled(_SECONDS) else dist.group.WORLD
        dist.destroy_process_group()
        _joined.left.append((peers, kept))


def _address(cluster: ClusterEnvironment | None) -> tuple[str, int]:
    host = os.environ.get("MASTER_ADDR") if cluster is None else cluster.main_address
    if cluster is None and (not host or not os.environ.get("MASTER_PORT")):
        raise MisconfigurationException(
            f"ddp: ranks find one another at MASTER_ADDR and MASTER_PORT. Got {host!r} and "
            f"{os.environ.get('MASTER_PORT')!r}. Start the script with torchrun, or set both."
        )
    return str(host), (EnvironmentCluster() if cluster is None else cluster).main_port
