"""Schedulers and one's own cluster environments behind the trainer."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningModule, Trainer
from lt_core.builtin.cpu import CPUAccelerator
from lt_core.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lt_interface import ConfigError
from lt_interface.testing.ranks import run_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SECONDS = 120.0
HAND = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
KINDS = {
    "torchrun": {**HAND, "TORCHELASTIC_RUN_ID": "job", "LOCAL_WORLD_SIZE": "4"},
    "slurm": {
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "9",
    },
    "mpi": {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "lsf": {
        "LSB_JOBID": "7",
        "LSB_HOSTS": "login a",
        "JSM_NAMESPACE_RANK": "1",
        "JSM_NAMESPACE_SIZE": "4",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
    },
    "kubeflow": {**{name: HAND[name] for name in HAND if name != "LOCAL_RANK"}, "KUBERNETES_PORT": "tcp"},
}


class Net(LightningModule):
    """Linear module whose weights depend on each sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def weights(devices: int, **flags: Any) -> list[float]:
    """Return the weights after a fit whose global batches are the same for any number of devices."""
    samples = torch.arange(96.0).reshape(24, 4) / 96
    net = Net()
    trainer = Trainer(**{**QUIET, "devices": devices, **flags})
    trainer.fit(net, DataLoader(TensorDataset(samples), batch_size=8 // trainer.world_size))
    found: list[float] = net.layer.weight.flatten().tolist()
    return found


class FarmEnvironment(ClusterEnvironment):
    """Cluster environment as it is written for PyTorch Lightning, of a scheduler that starts all processes."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.rank: int | None = None
        self.torn_down = 0

    @property
    def creates_processes_externally(self) -> bool:
        return "FARM_PLACE" in os.environ

    @property
    def main_address(self) -> str:
        return os.environ.get("FARM_HOST", "127.0.0.1")

    @property
    def main_port(self) -> int:
        return int(os.environ["FARM_PORT"])

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self.size or 1

    def set_world_size(self, size: int) -> None:
        self.size = size

    def global_rank(self) -> int:
        return self.rank or 0

    def set_global_rank(self, rank: int) -> None:
        self.rank = rank

    def local_rank(self) -> int:
        return int(os.environ.get("FARM_PLACE", "0"))

    def node_rank(self) -> int:
        return int(os.environ.get("FARM_NODE", "0"))

    def teardown(self) -> None:
        self.torn_down += 1


def farm_rank(number: int, kind: type = FarmEnvironment) -> Any:
    """Train as a process that a farm has started; return what the environment was told."""
    variables = {"FARM_PLACE": os.environ["RANK"], "FARM_PORT": os.environ["MASTER_PORT"]}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.environ.update(variables)
    farm = kind()
    found = weights(2, strategy="ddp", plugins=[farm])
    return farm.size, farm.rank, farm.torn_down, found


def test_an_environment_written_for_lightning_trains_unchanged() -> None:
    """Its ranks train together; it is given world and rank as Lightning does, and torn down after the fit."""
    found = run_ranks(farm_rank, timeout=SECONDS)
    assert [one[:3] for one in found] == [(2, 0, 1), (2, 1, 1)]
    for one in found:
        assert one[3] == pytest.approx(weights(1), abs=1e-6)


def test_an_environment_of_no_known_base_trains_too() -> None:
    """The methods count and not the base, which may be the other package's."""
    own = {n: v for n, v in vars(FarmEnvironment).items() if not n.startswith("_") or n == "__init__"}
    bare = type("Bare", (), own)
    assert [one[:3] for one in run_ranks(lambda n: farm_rank(n, bare), timeout=SECONDS)] == [(2, 0, 1), (2, 1, 1)]


@pytest.mark.parametrize("environment_kind", [FarmEnvironment, LightningEnvironment])
def test_an_environment_that_starts_nothing_leaves_that_to_the_launcher(
    environment: Any, environment_kind: Any
) -> None:
    """Where it has not started the processes, the launcher does, also inside a scheduler's job."""
    environment({**KINDS["slurm"], "FARM_PORT": "1"})
    found = weights(2, strategy="ddp_fork", plugins=[environment_kind()])
    assert found == pytest.approx(weights(1, plugins=[LightningEnvironment()]), abs=1e-6)


def test_an_environment_that_contradicts_the_flags_is_refused(environment: Any) -> None:
    """A world that keeps to another size than was asked for is one line that names both."""

    class Fixed(FarmEnvironment):
        def world_size(self) -> int:
            return 3

    environment({"FARM_PLACE": "0", "FARM_PORT": "29500"})
    with pytest.raises(ConfigError) as caught:
        Trainer(**QUIET, devices=2, plugins=[Fixed()])
    assert str(caught.value) == (
        "Trainer(devices=2), Fixed: it must have started one process for each device. Got world_size() = 3, "
        "global_rank() = 0, local_rank() = 0, for 1 x 2 devices. Set devices= and num_nodes=."
    )


def test_its_own_check_of_settings_is_asked(environment: Any) -> None:
    """What `validate_settings` raises ends the construction."""

    class Strict(FarmEnvironment):
        def validate_settings(self, num_devices: int, num_nodes: int) -> None:
            raise ValueError(f"{num_devices} x {num_nodes} do not fit here")

    environment({"FARM_PLACE": "0", "FARM_PORT": "29500"})
    with pytest.raises(ValueError, match="2 x 1 do not fit here"):
        Trainer(**QUIET, devices=2, plugins=[Strict()])


def test_nodes_of_an_environment_have_their_ranks(environment: Any) -> None:
    """On the second node of two the global rank is set from node and local rank, as Lightning sets it."""
    environment({"FARM_PLACE": "1", "FARM_NODE": "1", "FARM_PORT": "29500"})
    farm = FarmEnvironment()
    made = Trainer(**QUIET, devices=2, num_nodes=2, plugins=farm)
    assert (farm.size, farm.rank, made.num_nodes) == (4, 3, 2)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("torchrun", outer) for outer in ("slurm", "mpi", "lsf", "kubeflow")]
    + [("mpi", "slurm"), ("lsf", "slurm"), ("slurm", "kubeflow"), ("mpi", "kubeflow")],
)
def test_the_one_that_started_the_process_counts(environment: Any, inner: str, outer: str) -> None:
    """Where one scheduler works inside another's job, that which started the processes is taken."""
    environment({**KINDS[outer], **KINDS[inner]})
    made = Trainer(**QUIET)
    assert made._cluster.name == inner
    assert made.num_devices == 4
    assert type(made.strategy).__name__ == "DDPStrategy"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [{"devices": 3}, {"devices": 2}, {"devices": 1}, {"num_nodes": 3}])
def test_flags_that_contradict_a_scheduler_are_refused(environment: Any, kind: str, flags: dict[str, int]) -> None:
    """Another number of devices or nodes is one line with the flag as written and the scheduler's variable."""
    environment(KINDS[kind])
    if kind == "kubeflow" and flags == {"devices": 1}:  # a pod has one
        assert Trainer(**QUIET, **flags).num_nodes == 4
        return
    with pytest.raises(ConfigError) as caught:
        Trainer(**QUIET, **flags)
    ((name, value),) = flags.items()
    text = str(caught.value)
    assert text.startswith(f"Trainer({name}={value}): {kind} must have started one process for each device")
    assert "=4" in text


class TwoCards(CPUAccelerator):
    """Accelerator of a kind of which there are two."""

    name = kind = "gpu"

    def device_count(self) -> int:
        return 2

    def parse_devices(self, spec: Any) -> list[int]:
        if spec > 2:
            raise ValueError(f"Trainer(devices={spec}): there must be as many cards. Got 2 here.")
        return list(range(spec))


@pytest.mark.parametrize("flags", [{}, {"devices": 4}])
def test_more_processes_than_cards_are_refused(environment: Any, flags: dict[str, int]) -> None:
    """A scheduler that started more processes of a node than it has cards is refused, with or without `devices`."""
    environment(KINDS["torchrun"])
    with pytest.raises(ConfigError, match=r"Trainer\(devices=4\): there must be as many cards. Got 2 here"):
        Trainer(**{**QUIET, "accelerator": TwoCards(), **flags})


@pytest.mark.parametrize("srun", [True, False])
def test_a_forgotten_srun_is_warned_of(environment: Any, tmp_path: Path, srun: bool) -> None:
    """A job of several tasks whose script runs the program itself is warned of, where there is an srun."""
    if srun:
        (tmp_path / "srun").write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / "srun").chmod(0o755)
    environment({"SLURM_JOB_ID": "4", "SLURM_NTASKS": "4", "PATH": str(tmp_path)})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Trainer(**QUIET)
    assert [str(one.message) for one in seen] == [
        "slurm: the job has several tasks, and this program is not one that srun started. Got SLURM_NTASKS=4. "
        "To train with all of them, write srun in front of the command."
    ] * srun


def test_familiar_names_are_there() -> None:
    """Environments are found under the path that users' imports name, each one's instance a plugin."""
    faces = importlib.import_module("lt_core.plugins.environments")
    for name in ("SLURM", "TorchElastic", "Lightning", "MPI", "LSF", "Kubeflow"):
        kind = getattr(faces, f"{name}Environment")
        assert isinstance(kind(), ClusterEnvironment)
    assert not SLURMEnvironment(auto_requeue=False).auto_requeue
    with pytest.raises(AttributeError, match="has no attribute 'NoEnvironment'"):
        _ = faces.NoEnvironment


SCRIPT = """
import json, os, sys
sys.path.append({folder!r})
from test_clusters import FarmEnvironment, LightningEnvironment, weights

if __name__ == "__main__":
    kind = {{"farm": FarmEnvironment, "lightning": LightningEnvironment}}[sys.argv[1]]
    found = weights(2, strategy="ddp", plugins=[kind()])
    print(json.dumps([int(os.environ["RANK"]), found]) + "\\n", end="", flush=True)  # in one write: ranks share a pipe
"""


@pytest.mark.parametrize("kind", ["farm", pytest.param("lightning", marks=pytest.mark.slow)])
def test_ranks_of_a_script_keep_to_their_launcher(environment: Any, tmp_path: Path, kind: str) -> None:
    """A script that passes an environment of its own starts its further ranks once, and they train together."""
    (tmp_path / "train.py").write_text(SCRIPT.format(folder=str(Path(__file__).parent)), encoding="utf-8")
    environment({"FARM_PORT": "1"})
    command = [sys.executable, str(tmp_path / "train.py"), kind]
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(rank for rank, _ in found) == [0, 1]
    for _, values in found:
        assert values == pytest.approx(weights(1), abs=1e-6)


def test_an_environments_first_node_knows_its_share(environment: Any) -> None:
    """With num_nodes said, each node has its share of the world as devices; without, a later node asks for it."""

    class Wide(FarmEnvironment):
        def world_size(self) -> int:
            return 4

        def global_rank(self) -> int:
            return 2 * self.node_rank() + self.local_rank()

    for node in ("0", "1"):
        environment({"FARM_PLACE": "1", "FARM_PORT": "29500", "FARM_NODE": node})
        trainer = Trainer(**QUIET, num_nodes=2, strategy="ddp", plugins=[Wide()])
        assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 2, 4)
    with pytest.raises(ConfigError, match=r"Wide: with several nodes .* Got node_rank\(\) = 1\. Set num_nodes=\."):
        Trainer(**QUIET, strategy="ddp", plugins=[Wide()])
