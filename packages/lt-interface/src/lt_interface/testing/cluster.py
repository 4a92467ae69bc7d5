"""Conformance suite of cluster environments."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from lt_interface.cluster import ClusterEnvironment
from lt_interface.registry import clusters
from lt_interface.testing.suite import Conformance
from lt_interface.world import World

__all__ = ["ClusterConformance"]


class ClusterConformance(Conformance, suite=True):
    """Tests of a cluster environment.

    Attributes:
        ranks: For several ranks of one run, the environment variables that the scheduler sets in it, and its place.

    Example:
        ::

            class TestFarm(ClusterConformance):
                plugin = "farm"
                ranks = [
                    ({"FARM_RANK": "0", "FARM_SIZE": "2"}, World(rank=0, size=2, local_rank=0, local_size=2)),
                    ({"FARM_RANK": "1", "FARM_SIZE": "2"}, World(rank=1, size=2, local_rank=1, local_size=2)),
                ]
    """

    registry = clusters
    ranks: ClassVar[list[tuple[dict[str, str], World]]] = []

    def test_fills_the_protocol(self) -> None:
        """It has every method and attribute, of the right type, also outside of its scheduler."""
        with _environment({}):
            cluster = self.make()
            assert isinstance(cluster, ClusterEnvironment)
            assert isinstance(cluster.name, str)
            assert cluster.name
            assert isinstance(cluster.creates_processes, bool)
            if self.plugin:
                assert cluster.name == self.plugin

    def test_recognises_its_scheduler(self) -> None:
        """It detects itself in each rank's environment, and in no other; asking changes no variable."""
        assert self.ranks, "name the environment variables of some ranks (ranks = ...)"
        kind = type(self.make())
        with _environment({}):
            assert kind.detect() is False
        for variables, _ in self.ranks:
            with _environment(variables):
                before = dict(os.environ)
                assert kind.detect() is True
                assert dict(os.environ) == before

    def test_every_rank_knows_its_place(self) -> None:
        """Each rank's world is the one that its environment describes."""
        for variables, expected in self.ranks:
            with _environment(variables):
                assert self.make().world() == expected

    def test_places_fit_together(self) -> None:
        """Ranks are distinct, below their number, and all know the same number."""
        worlds = []
        for variables, _ in self.ranks:
            with _environment(variables):
                worlds.append(self.make().world())
        assert len({world.rank for world in worlds}) == len(worlds)
        assert len({(world.node_rank, world.local_rank) for world in worlds}) == len(worlds)
        assert len({(world.size, world.data_size) for world in worlds}) == 1
        for world in worlds:
            assert 0 <= world.rank < world.size
            assert 0 <= world.local_rank < world.local_size <= world.size
            assert 0 <= world.data_rank < world.data_size <= world.size

    def test_ranks_meet_at_one_address(self) -> None:
        """Every rank is given the same host and port of rank 0."""
        places = set()
        for variables, _ in self.ranks:
            with _environment(variables):
                cluster = self.make()
                assert isinstance(cluster.main_address, str)
                assert cluster.main_address
                assert isinstance(cluster.main_port, int)
                assert 0 < cluster.main_port < 65536
                places.add((cluster.main_address, cluster.main_port))
        assert len(places) == 1

    def test_pickles(self) -> None:
        """It travels to other processes, and reads the environment there."""
        with _environment(self.ranks[0][0]):
            twin: Any = pickle.loads(pickle.dumps(self.make()))
        with _environment(self.ranks[-1][0]):
            assert twin.world() == self.ranks[-1][1]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let the process have these environment variables alone, besides those that Python needs."""
    before = dict(os.environ)
    kept = {name: value for name, value in before.items() if name in ("PATH", "HOME", "TMPDIR")}
    try:
        os.environ.clear()
        os.environ.update({**kept, **variables})
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
