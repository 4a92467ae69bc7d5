"""Schedulers: recognised by their variables, each rank with its place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lt_accel.clusters.kubeflow import KubeflowCluster
from lt_accel.clusters.lsf import LSFCluster
from lt_accel.clusters.mpi import MPICluster
from lt_accel.clusters.slurm import SlurmCluster
from lt_accel.clusters.torchrun import TorchrunCluster
from lt_interface import ConfigError, MisconfigurationException, Plan, World, is_rank_zero
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


def open_mpi(rank: int) -> dict[str, str]:
    """Return the variables of a rank of Open MPI, two of them on each node."""
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    values = zip(names, (rank, 4, rank % 2, 2), strict=True)
    return {"MASTER_ADDR": "node0", **{f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values}}


def pmi(rank: int) -> dict[str, str]:
    """Return the variables of a rank of MPICH or Intel MPI, two of them on each node."""
    values = zip(("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"), (rank, 4, rank % 2, 2), strict=True)
    return {"MASTER_ADDR": "node0", **{name: str(value) for name, value in values}}


def lsf(rank: int) -> dict[str, str]:
    """Return the variables of a rank under jsrun, two of them on each node."""
    values = zip(("RANK", "SIZE", "LOCAL_RANK"), (rank, 4, rank % 2), strict=True)
    job = {"LSB_JOBID": "77", "LSB_MCPU_HOSTS": "login 1 node0 40 node1 40"}
    return {**job, **{f"JSM_NAMESPACE_{name}": str(value) for name, value in values}}


def kubeflow(rank: int) -> dict[str, str]:
    """Return the variables of a pod."""
    place = {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
    return {"KUBERNETES_PORT": "tcp://10.0.0.1:443", **place}


def place(rank: int) -> World:
    """Return where a rank is."""
    return World(rank, 4, local_rank=rank % 2, local_size=2, node_rank=rank // 2, data_rank=rank, data_size=4)


class TestTorchrun(ClusterConformance):
    plugin = "torchrun"
    ranks = [(torchrun(rank), place(rank)) for rank in range(4)]


class TestOpenMPI(ClusterConformance):
    plugin = "mpi"
    ranks = [(open_mpi(rank), place(rank)) for rank in range(4)]


class TestPMI(ClusterConformance):
    plugin = "mpi"
    ranks = [(pmi(rank), place(rank)) for rank in range(4)]


class TestLSF(ClusterConformance):
    plugin = "lsf"
    ranks = [(lsf(rank), place(rank)) for rank in range(4)]


class TestKubeflow(ClusterConformance):
    plugin = "kubeflow"
    ranks = [(kubeflow(rank), World(rank, 4, 0, 1, rank, data_rank=rank, data_size=4)) for rank in range(4)]


class TestSlurm(ClusterConformance):
    plugin = "slurm"
    ranks = [(slurm(rank), place(rank)) for rank in range(4)]


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
    [
        ("r[1-2]n[07-09]x,b", "r1n07x"),
        ("c[1-2,5]", "c1"),
        ("gpu[07-08],cpu1", "gpu07"),
        ("a1,b2", "a1"),
        ("a-[1,3]", "a-1"),
        ("n[01-02]-ib", "n01-ib"),
        ("one", "one"),
    ],
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


def test_srun_counts_where_mpi_only_repeats_it(environment: Any) -> None:
    """Tasks of srun that have PMI's variables too are Slurm's; those of another world are mpirun's."""
    environment({**slurm(1), "PMI_RANK": "1", "PMI_SIZE": "4"})
    assert (MPICluster.detect(), SlurmCluster.detect()) == (False, True)
    environment({**slurm(0), "SLURM_NTASKS": "2", "PMI_RANK": "3", "PMI_SIZE": "4"})
    assert MPICluster.detect()


@pytest.mark.parametrize(
    ("given", "task", "recognised"),
    [
        ({}, True, True),
        ({"SLURM_STEP_ID": "0", "ENVIRONMENT": "BATCH"}, True, True),
        ({"ENVIRONMENT": "BATCH", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": None}, False, True),
        ({"SLURM_PROCID": None, "SLURM_STEP_NODELIST": None}, False, True),
        ({"SLURM_STEP_ID": "4294967290"}, True, False),
        ({"SLURM_PTY_PORT": "4"}, True, False),
        ({"SLURM_JOB_NAME": "interactive"}, True, False),
        ({"SLURM_JOB_NAME": "jupyter"}, True, True),
    ],
)
def test_slurm_knows_tasks_from_scripts_and_shells(
    environment: Any, given: dict[str, Any], task: bool, recognised: bool
) -> None:
    """Only srun starts ranks: a job's script is alone, and a shell in a job is none of its programs."""
    values = {**slurm(1), **given}
    environment({name: value for name, value in values.items() if value is not None})
    assert SlurmCluster.detect() is recognised
    assert SlurmCluster().creates_processes is task


def test_a_script_of_slurm_is_placed_by_the_launcher(environment: Any) -> None:
    """Where the job's script runs the program, its place is that which a launcher of the trainer gives it."""
    environment({"SLURM_JOB_ID": "4", "SLURM_NTASKS": "4"})
    assert SlurmCluster().world() == World()
    environment({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0"})
    assert SlurmCluster().world() == World(1, 2, 1, 2, 0, data_rank=1, data_size=2)


def test_mpi_ranks_may_be_dealt_to_nodes_in_turn(environment: Any) -> None:
    """With ranks dealt one to each node in turn, node and local rank still differ for each."""
    found = set()
    for rank in range(4):
        environment({**open_mpi(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank // 2)})
        world = MPICluster().world()
        found.add((world.node_rank, world.local_rank))
    assert found == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_mpi_says_what_it_lacks_on_several_nodes(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address and mpi4py there is one error with both ways out; on one node, and with mpi4py, none."""
    environment(open_mpi(3))
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    (problem,) = MPICluster().problems(Plan(devices=(0, 1), num_nodes=2), "Trainer()")
    assert str(problem).startswith("MASTER_ADDR: mpi on several nodes must say where rank 0 is. Got nothing, and OMPI_")
    assert str(problem).endswith("Run: mpirun -x MASTER_ADDR=HOST, or install mpi4py.")
    world = SimpleNamespace(bcast=lambda host, root: "node7")
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", SimpleNamespace(COMM_WORLD=world))
    assert MPICluster().main_address == "node7"
    environment({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert MPICluster().main_address == "127.0.0.1"


def test_mpi_ports_come_from_the_job(environment: Any) -> None:
    """Jobs of one machine get ports of their own; a given port comes first."""
    environment({**open_mpi(0), "PMIX_NAMESPACE": "prterun-1@1"})
    first = MPICluster().main_port
    environment({"PMIX_NAMESPACE": "prterun-2@1"})
    assert first != MPICluster().main_port
    environment({"MASTER_PORT": "4242"})
    assert MPICluster().main_port == 4242


@pytest.mark.parametrize(
    ("listed", "first", "node"),
    [
        ({"LSB_DJOB_RANKFILE": "login\nnode0\nnode0\nnode1\nnode1\n"}, "node0", 1),
        ({"LSB_MCPU_HOSTS": "login 1 node0 40 node1 40"}, "node0", 1),
        ({"LSB_HOSTS": "login node0 node0 node1"}, "node0", 1),
        ({"LSB_DJOB_RANKFILE": "node0\n"}, "node0", 0),
    ],
)
def test_lsf_reads_its_hosts(environment: Any, tmp_path: Path, listed: dict[str, str], first: str, node: int) -> None:
    """Rank 0 is on the first host that computes, as file or variables list them."""
    if "LSB_DJOB_RANKFILE" in listed:
        (tmp_path / "hosts").write_text(listed["LSB_DJOB_RANKFILE"], encoding="utf-8")
        listed = {"LSB_DJOB_RANKFILE": str(tmp_path / "hosts")}
    ours = lsf(3)
    del ours["LSB_MCPU_HOSTS"]
    environment({**ours, **listed})
    assert LSFCluster().main_address == first
    assert LSFCluster().world().node_rank == node
    assert LSFCluster().main_port == 15077


@pytest.mark.parametrize("path", [None, "/nowhere/hosts"])
def test_lsf_without_hosts_is_one_error(environment: Any, path: str | None) -> None:
    """A list of hosts that is missing or cannot be read is named."""
    ours = {**lsf(0), **({} if path is None else {"LSB_DJOB_RANKFILE": path})}
    del ours["LSB_MCPU_HOSTS"]
    environment(ours)
    with pytest.raises(ConfigError, match=r"^LSB_DJOB_RANKFILE: lsf must (name|list)"):
        LSFCluster().world()


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"])
def test_kubeflow_leaves_pods_of_several_ranks_alone(environment: Any, name: str) -> None:
    """A pod is a rank only where nothing in it starts several."""
    environment(kubeflow(1))
    assert KubeflowCluster.detect()
    environment({name: "1"})
    assert not KubeflowCluster.detect()


@pytest.mark.parametrize("kind", [torchrun, slurm, open_mpi, pmi, lsf, kubeflow])
def test_only_rank_zero_speaks_before_the_ranks_meet(environment: Any, kind: Any) -> None:
    """Before anything is joined a process knows by its scheduler's variables whether it is the first."""
    for rank in range(4):
        environment(kind(rank))
        assert is_rank_zero() is (rank == 0)


def test_mpi_inside_a_task_of_slurm_numbers_its_own(environment: Any) -> None:
    """Mpirun's helpers are Slurm's tasks, each the first of its node; the rank is MPI's."""
    environment({**slurm(0), **open_mpi(3)})
    assert not is_rank_zero()
