"""Several nodes, which are programs of this machine: the same training as in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lt_interface.testing.ranks import free_port

PROGRAM = """
import json, os, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lt_core import LightningModule, Trainer, seed_everything

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def on_fit_end(self):
        place = [self.trainer.global_rank, self.trainer.world_size, self.trainer.local_rank, self.trainer.node_rank]
        text = json.dumps([place, self.layer.weight.flatten().tolist()])
        with open(os.path.join(os.environ["FOUND"], str(place[0])), "w") as file:
            file.write(text)

if __name__ == "__main__":
    seed_everything(1, verbose=False)
    samples = torch.arange(148.0).reshape(37, 4) / 148
    flags = json.loads(sys.argv[1])
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False, **flags)
    size = int(os.environ["SIZE"])
    trainer.fit(Net(), DataLoader(TensorDataset(samples), batch_size=8 // size, shuffle=True))
"""
SECONDS = 240.0
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
Start = Callable[..., list[list[Any]]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that runs programs beside one another, and returns place and weights of each rank."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM, encoding="utf-8")

    def run(*programs: tuple[list[str], dict[str, str]], size: int, flags: dict[str, Any]) -> list[list[Any]]:
        found = tmp_path / f"found-{len(list(tmp_path.iterdir()))}"
        found.mkdir()
        kept = {n: v for n, v in os.environ.items() if n not in OURS and n != "PYTEST_CURRENT_TEST"}
        started = [
            subprocess.Popen(
                [sys.executable, *command, str(script), json.dumps(flags)],
                env={**kept, "FOUND": str(found), "SIZE": str(size), **variables},
                cwd=tmp_path,
                text=True,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            for command, variables in programs
        ]
        try:
            errors = [process.communicate(timeout=SECONDS)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(found.iterdir())]

    return run


def same(found: list[list[Any]], start: Start, places: list[list[int]]) -> None:
    """Compare with one process."""
    assert [place for place, _ in found] == places
    ((_, weights),) = start(([], {}), size=1, flags={})
    for _, values in found:
        assert values == pytest.approx(weights, abs=1e-6)


TWO_BY_TWO = [[0, 4, 0, 0], [1, 4, 1, 0], [2, 4, 0, 1], [3, 4, 1, 1]]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("ddp_fork", marks=pytest.mark.slow)])
def test_two_nodes_whose_launchers_start_two_ranks_each(start: Start, strategy: str) -> None:
    """Programs with NODE_RANK and rank 0's address on two nodes train together, whatever starts their ranks."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [([], {**address, "NODE_RANK": str(node)}) for node in range(2)]
    found = start(*nodes, size=4, flags={"strategy": strategy, "devices": 2, "num_nodes": 2})
    if strategy == "ddp_fork":  # each launching process writes too, for its node, behind its first rank
        found = [one for one in found if one[0][1] == 4]
    same(found, start, TWO_BY_TWO)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{"strategy": "ddp", "devices": 2, "num_nodes": 2}, {}])
def test_two_agents_of_torchrun(start: Start, flags: dict[str, Any]) -> None:
    """Two nodes of torchrun with two ranks each train together, with flags and without any."""
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    port = free_port()
    nodes = [
        ([*torchrun, "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port)], {})
        for node in range(2)
    ]
    same(start(*nodes, size=4, flags=flags), start, TWO_BY_TWO)


@pytest.mark.parametrize("flags", [pytest.param({"strategy": "ddp"}, marks=pytest.mark.slow), {"strategy": "auto"}])
def test_torchrun_alone(start: Start, flags: dict[str, Any]) -> None:
    """A node of torchrun gives its number of ranks, by the strategy's name and by "auto"."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    same(start((command, {}), size=2, flags=flags), start, [[0, 2, 0, 0], [1, 2, 1, 0]])
