"""torchrun and Slurm: recognised by their variables, checked against the flags before anything starts."""

from __future__ import annotations

import os
from typing import Any

import pytest

from lt_accel.clusters.slurm import SlurmCluster
from lt_accel.clusters.torchrun import TorchrunCluster
from lt_interface import MisconfigurationException, World
from lt_interface.testing import ClusterConformance

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "job",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29501",
}
SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": "gpu[07-08],cpu1"}


def torchrun(rank: int) -> dict[str, str]:
    """Return the variables of a rank, two of them on each node."""
    return {**TORCHRUN, "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "GROUP_RANK": str(rank // 2)}


def slurm(rank: int) -> dict[str, str]:
    """Return the variables of a task, two of them on each node."""
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURM_NODEID": str(rank // 2)}
    return {**SLURM, "SLURM_NTASKS_PER_NODE": "2", **place}


def place(rank: int) -> World:
    """Return where a rank is."""
    return World(rank, 4, local_rank=rank % 2, local_size=2, node_rank=rank // 2, data_rank=rank, data_size=4)


class TestTorchrun(ClusterConformance):
    plugin = "torchrun"
    ranks = [(torchrun(rank), place(rank)) for rank in range(4)]


class TestSlurm(ClusterConformance):
    plugin = "slurm"
    ranks = [(slurm(rank), place(rank)) for rank in range(4)]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the environment's variables, those of schedulers removed."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_slurm_leaves_interactive_shells_alone(environment: Any) -> None:
    """A program in an interactive shell of a job is no task, and one that torchrun started is torchrun's."""
    environment(slurm(0))
    assert SlurmCluster.detect()
    for name in ("bash", "interactive"):
        environment({"SLURM_JOB_NAME": name})
        assert not SlurmCluster.detect()
    environment({"SLURM_JOB_NAME": "train", **torchrun(0)})
    assert not SlurmCluster.detect()
    assert TorchrunCluster.detect()


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "3,1"}, [3, 1]),
        ({"SLURM_TASKS_PER_NODE": "2(x2)"}, [2, 2]),
        ({"SLURM_NNODES": "2"}, [2, 2]),
        ({}, [4, 4]),
    ],
)
def test_slurm_counts_the_tasks_of_a_node(environment: Any, given: dict[str, str], sizes: list[int]) -> None:
    """A node's tasks are read from what the step says of each node, or worked out."""
    environment({**SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "0", **given})
    for node, size in enumerate(sizes):
        environment({"SLURM_NODEID": str(node)})
        assert SlurmCluster().world().local_size == size


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu[07-08],cpu1", "gpu07"), ("a1,b2", "a1"), ("a-[1,3]", "a-1"), ("n[01-02]-ib", "n01-ib"), ("one", "one")],
)
def test_slurm_finds_the_host_of_rank_zero(environment: Any, hosts: str, first: str) -> None:
    """Rank 0 is on the first host of the list, however that is written; its port comes from the job's number."""
    environment({**SLURM, "SLURM_STEP_NODELIST": hosts})
    assert SlurmCluster().main_address == first
    assert SlurmCluster().main_port == 15000 + 123456 % 20000
    environment({"MASTER_ADDR": "head", "MASTER_PORT": "4242"})
    assert (SlurmCluster().main_address, SlurmCluster().main_port) == ("head", 4242)


@pytest.mark.parametrize("text", [None, "many", ""])
def test_a_missing_variable_is_named(environment: Any, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """A variable that is missing, or no number, is an error that names it."""
    environment(torchrun(0))
    monkeypatch.delenv("WORLD_SIZE")
    if text is not None:
        environment({"WORLD_SIZE": text})
    with pytest.raises(MisconfigurationException, match="WORLD_SIZE: torchrun must set it to a whole number"):
        TorchrunCluster().world()
