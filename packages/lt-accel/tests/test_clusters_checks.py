"""What was started against what was asked for: each contradiction is one line that names both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lt_accel import (
    KubeflowEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lt_accel.clusters.environment import hand_problems
from lt_accel.launchers.place import cores_here, node_problems
from lt_accel.launchers.processes import ForkLauncher
from lt_interface import ConfigError, MisconfigurationException, Plan, World

Put = Callable[[dict[str, str]], None]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "job",
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_JOB_ID": "9",
}
HAND = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


def plan(devices: int, nodes: int = 1) -> Plan:
    """Return a plan of one process for each device."""
    return Plan(devices=tuple(range(devices)), num_nodes=nodes)


@pytest.mark.parametrize(
    ("kind", "variables", "asked", "line"),
    [
        (
            TorchElasticEnvironment,
            TORCHRUN,
            plan(3),
            "Trainer(): torchrun must have started one process for each device. Got 4 processes, 4 of them on this "
            "node (WORLD_SIZE=4, LOCAL_WORLD_SIZE=4, GROUP_WORLD_SIZE=1), for 1 x 3 devices. Leave devices and "
            "num_nodes out, or run: torchrun --nnodes 1 --nproc-per-node 3.",
        ),
        (
            TorchElasticEnvironment,
            TORCHRUN,
            plan(2, 2),
            "Trainer(): torchrun must have started one process for each device of this node. Got 4 processes, 4 of "
            "them on this node (WORLD_SIZE=4, LOCAL_WORLD_SIZE=4, GROUP_WORLD_SIZE=1), for 2 x 2 devices. Leave "
            "devices and num_nodes out, or run: torchrun --nnodes 2 --nproc-per-node 2.",
        ),
        (
            SLURMEnvironment,
            SLURM,
            plan(2),
            "Trainer(): slurm must have started one process for each device. Got 4 processes, 4 of them on this node "
            "(SLURM_NTASKS=4, SLURM_NNODES=1), for 1 x 2 devices. Leave devices and num_nodes out, or submit with "
            "--nodes=1 --ntasks-per-node=2 and start the program by srun.",
        ),
        (
            SLURMEnvironment,
            {**SLURM, "SLURM_TASKS_PER_NODE": "3,1", "SLURM_NNODES": "2"},
            plan(3),
            "Trainer(): slurm must have started as many processes on each node. Got 4 processes, 3 of them on this "
            "node (SLURM_NTASKS=4, SLURM_NNODES=2), for 1 x 3 devices. Ask for the same number on each.",
        ),
        (
            MPIEnvironment,
            {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"},
            plan(4),
            "Trainer(): mpi must have started one process for each device. Got 2 processes, 2 of them on this node "
            "(PMI_SIZE=2, MPI_LOCALNRANKS=2), for 1 x 4 devices. Leave devices and num_nodes out, or run: mpirun -n 4.",
        ),
        (
            LSFEnvironment,
            {
                "LSB_JOBID": "1",
                "LSB_HOSTS": "login a b",
                "JSM_NAMESPACE_RANK": "0",
                "JSM_NAMESPACE_SIZE": "4",
                "JSM_NAMESPACE_LOCAL_RANK": "0",
            },
            plan(2),
            "Trainer(): lsf must have started one process for each device. Got 4 processes, 2 of them on this node "
            "(JSM_NAMESPACE_SIZE=4), for 1 x 2 devices. Leave devices and num_nodes out, or run: jsrun --nrs 2 "
            "--rs_per_host 2.",
        ),
        (
            KubeflowEnvironment,
            {**HAND, "KUBERNETES_PORT": "tcp"},
            plan(2, 2),
            "Trainer(): kubeflow must have started one process for each device. Got 2 processes, 1 of them on this "
            "node (WORLD_SIZE=2), for 2 x 2 devices. Leave devices and num_nodes out, or give the job 2 replicas, and "
            "start torchrun in each.",
        ),
    ],
)
def test_other_numbers_than_were_started_are_one_line(
    environment: Put, kind: Any, variables: dict[str, str], asked: Plan, line: str
) -> None:
    """The line has what was started and by which variables, what was asked for, and how to bring them together."""
    environment(variables)
    assert [str(problem) for problem in kind().problems(asked, "Trainer()")] == [line]
    with pytest.raises(ConfigError, match=r"Trainer\(devices=\d, num_nodes=\d\)"):
        kind().validate_settings(len(asked.devices), asked.num_nodes)


@pytest.mark.parametrize(
    ("kind", "variables", "asked"),
    [
        (TorchElasticEnvironment, TORCHRUN, plan(4)),
        (SLURMEnvironment, SLURM, plan(4)),
        (SLURMEnvironment, {**SLURM, "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2"}, plan(2, 2)),
        (SLURMEnvironment, {**SLURM, "SLURM_NNODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, plan(2, 2)),
    ],
)
def test_what_fits_is_no_problem(environment: Put, kind: Any, variables: dict[str, str], asked: Plan) -> None:
    """As many processes on each node as devices are right, whether Slurm counted them for each node or in all."""
    environment(variables)
    assert kind().problems(asked, "Trainer()") == []
    kind().validate_settings(len(asked.devices), asked.num_nodes)


@pytest.mark.parametrize(
    ("kind", "variables", "lines"),
    [
        (TorchElasticEnvironment, {**TORCHRUN, "RANK": "4"}, ["RANK=4: it must be below WORLD_SIZE=4."]),
        (
            TorchElasticEnvironment,
            {**TORCHRUN, "LOCAL_RANK": "4"},
            ["LOCAL_RANK=4: it must be below LOCAL_WORLD_SIZE=4."],
        ),
        (
            TorchElasticEnvironment,
            {**TORCHRUN, "LOCAL_WORLD_SIZE": "8"},
            ["LOCAL_WORLD_SIZE=8: it must be at most WORLD_SIZE=4."],
        ),
        (
            SLURMEnvironment,
            {**SLURM, "SLURM_NTASKS": "many", "SLURM_NODEID": "-1", "SLURM_LOCALID": ""},
            [
                "SLURM_NTASKS: slurm must set it to a whole number. Got 'many'.",
                "SLURM_LOCALID: slurm must set it to a whole number. Got ''.",
                "SLURM_NODEID: slurm must set it to a whole number. Got '-1'.",
            ],
        ),
        (SLURMEnvironment, {**SLURM, "SLURM_NTASKS": "0"}, ["SLURM_PROCID=1: it must be below SLURM_NTASKS=0."]),
    ],
)
def test_variables_that_contradict_one_another_are_all_named(
    environment: Put, kind: Any, variables: dict[str, str], lines: list[str]
) -> None:
    """A place that cannot be is refused with all variables at fault at once, and by whom they must be set."""
    environment(variables)
    with pytest.raises(ConfigError) as caught:
        kind().world()
    assert len(caught.value.problems) == len(lines)
    for problem, line in zip(caught.value.problems, lines, strict=True):
        assert str(problem).startswith(line)
        assert str(problem).endswith(f"Start this program by {kind.name}, or unset its variables.")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "http", "-1", ""])
@pytest.mark.parametrize("kind", [TorchElasticEnvironment, SLURMEnvironment])
def test_a_port_that_is_none_is_named(environment: Put, kind: Any, port: str) -> None:
    """MASTER_PORT must be a number that a port can have, whoever started the ranks."""
    environment({**TORCHRUN, **SLURM, "MASTER_PORT": port})
    (problem,) = kind().problems(plan(4), "Trainer()")
    assert str(problem).startswith("MASTER_PORT: ")
    assert f"Got {port!r}" in str(problem)


@pytest.mark.parametrize(
    ("variables", "asked", "lines"),
    [
        ({"RANK": "0"}, plan(2), ["RANK: WORLD_SIZE must be set beside it. Got RANK=0."]),
        ({"RANK": "0", "WORLD_SIZE": ""}, plan(2), ["RANK: WORLD_SIZE must be set beside it."]),
        (
            {"WORLD_SIZE": "2"},
            plan(2),
            ["WORLD_SIZE: RANK must be set beside it, or NODE_RANK and num_nodes=2 in each node's program."],
        ),
        ({"RANK": "x", "WORLD_SIZE": "y"}, plan(2), ["RANK: ", "WORLD_SIZE: "]),
        ({**HAND, "RANK": "2"}, plan(2), ["RANK: it must be below WORLD_SIZE=2. Got RANK=2, WORLD_SIZE=2"]),
        (HAND, plan(3), ["here: what starts processes by hand must start one for each device. Got 3 processes, and"]),
        (HAND, plan(1), ["here: what starts processes by hand must start one for each device. Got 1 process, and"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, plan(2), ["RANK: MASTER_ADDR and MASTER_PORT must be set beside it."]),
        ({**HAND, "MASTER_PORT": "70000"}, plan(2), ["MASTER_PORT: a port is a number from 1 to 65535. Got '70000'."]),
        ({**HAND, "LOCAL_RANK": "2"}, plan(2), ["LOCAL_RANK: it must be below 2, the processes of a node."]),
        ({**HAND, "LOCAL_WORLD_SIZE": "1"}, plan(2), ["LOCAL_WORLD_SIZE: it must be 2, the devices of a node."]),
        ({"LOCAL_RANK": "1"}, plan(2), ["LOCAL_RANK: RANK and WORLD_SIZE must be set beside it. Got LOCAL_RANK=1."]),
        ({"NODE_RANK": "1"}, plan(2), ["NODE_RANK: it must be below num_nodes=1. Got NODE_RANK=1."]),
        (
            {"NODE_RANK": "2", "WORLD_SIZE": "3"},
            plan(2, 2),
            ["WORLD_SIZE: ", "NODE_RANK: it must be below num_nodes=2."],
        ),
    ],
)
def test_variables_set_by_hand_are_checked(
    environment: Put, variables: dict[str, str], asked: Plan, lines: list[str]
) -> None:
    """Variables that are half set, no numbers or do not fit the flags are all named, with what there is."""
    environment(variables)
    found = [str(problem) for problem in hand_problems("here", asked)]
    assert len(found) == len(lines), found
    for text, line in zip(found, lines, strict=True):
        assert text.startswith(line)


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, plan(4)),
        ({"WORLD_SIZE": "1"}, plan(2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, plan(2)),
        (HAND, plan(2)),
        ({"NODE_RANK": "1", "WORLD_SIZE": "2"}, plan(2, 2)),
        ({"NODE_RANK": "1", "WORLD_SIZE": "4"}, plan(2, 2)),
        ({"NODE_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, plan(2)),
    ],
)
def test_variables_that_fit_are_no_problem(environment: Put, variables: dict[str, str], asked: Plan) -> None:
    """Ranks started by hand, and nodes that count nodes or ranks, are left alone."""
    environment(variables)
    assert hand_problems("here", asked) == []


def test_ranks_started_by_hand_start_none(environment: Put) -> None:
    """A launcher of processes refuses to work in each of several processes that were started by hand."""
    environment(HAND)
    (problem,) = ForkLauncher().problems(plan(2))
    assert "starts no ranks of its own" in str(problem)
    assert "RANK=0, WORLD_SIZE=2" in str(problem)


def test_more_processes_than_cores_are_warned_of(environment: Put) -> None:
    """More processes of one machine than it has cores are a warning on rank 0; absurdly many are refused."""
    environment({})
    cores = cores_here()
    assert node_problems("here", plan(cores)) == []
    with pytest.warns(UserWarning, match=rf"here: {cores + 1} processes share {cores} cores"):
        assert node_problems("here", plan(cores + 1)) == []
    (problem,) = node_problems("here", plan(max(32 * cores, 64) + 1))
    assert str(problem).startswith(f"here: this machine, of {cores} cores, cannot run so many processes. Got devices=")
    assert node_problems("here", Plan(device_type="cuda", devices=tuple(range(cores + 1)))) == []


def test_the_environment_without_a_scheduler(environment: Put) -> None:
    """`LightningEnvironment` takes no scheduler's word; by hand it is a rank, and without variables alone."""
    environment(SLURM)
    assert not LightningEnvironment().creates_processes
    assert LightningEnvironment().world() == World()
    environment({**HAND, "RANK": "1"})
    made = LightningEnvironment()
    assert made.creates_processes
    assert made.world() == World(1, 2, 1, 2, 0, data_rank=1, data_size=2)
    assert (made.main_address, made.main_port) == ("127.0.0.1", 29400)
    environment({"WORLD_SIZE": "two"})
    with pytest.raises(MisconfigurationException, match=r"WORLD_SIZE: .* Got 'two'"):
        made.world()


def test_methods_have_the_familiar_names(environment: Put) -> None:
    """What PyTorch Lightning's environments are asked for can be asked here, and a subclass may replace it."""
    environment(SLURM)

    class Mine(SLURMEnvironment):
        main_port = 4242

        def local_rank(self) -> int:
            return 3

    made = Mine(auto_requeue=False)
    assert (made.global_rank(), made.world_size(), made.node_rank(), made.local_rank()) == (1, 4, 0, 3)
    assert (made.creates_processes_externally, made.main_address, made.main_port) == (True, "127.0.0.1", 4242)
    assert made.world().local_rank == 3
    assert (made.job_id(), made.job_name()) == (9, None)
    made.set_world_size(8)
    made.set_global_rank(7)
    made.teardown()
    assert made.world().size == 4
