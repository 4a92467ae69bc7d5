"""Several ranks behind a launcher: what comes back is rank 0's, and nobody but rank 0 writes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer
from lt_interface import ClusterEnvironment, Outcome, Plan, Problem
from lt_interface.testing import LauncherConformance

SECONDS = 100.0
SIZE = 2


class PairLauncher:
    """Launcher of two forked ranks."""

    name = "pair"
    passes = "inherited"

    def problems(self, plan: Plan) -> Sequence[Problem]:
        """Refuse another number of processes."""
        rule = f"it starts {SIZE} processes"
        return [] if plan.processes == SIZE else [Problem("Trainer(launcher='pair')", rule, fix="Write devices=2.")]

    def launch(
        self, main: Callable[[Any], Outcome], request: Any, plan: Plan, cluster: ClusterEnvironment | None
    ) -> Outcome:
        """Run both ranks; return rank 0's outcome, or raise the first error. No process outlives the call."""
        context = multiprocessing.get_context("fork")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [context.Pipe(duplex=False) for _ in range(SIZE)]
        ranks = [context.Process(target=_run, args=(i, port, main, request, pipes)) for i in range(SIZE)]
        try:
            for rank in ranks:
                rank.start()
            for _, sending in pipes:
                sending.close()
            answers = [_answer(receiving) for receiving, _ in pipes]
        finally:
            for rank in ranks:
                rank.join(5.0)
                rank.kill()
                rank.join()
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors:
            raise errors[0]
        outcome: Outcome = answers[0]
        return outcome


def _run(number: int, port: int, main: Callable[[Any], Outcome], request: Any, pipes: list[Any]) -> None:
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": SIZE, "LOCAL_WORLD_SIZE": SIZE, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
    torch.set_num_threads(1)
    for other, (_, sending) in enumerate(pipes):
        if other != number:
            sending.close()
    try:
        answer = pickle.dumps(main(request))
    except BaseException as error:
        answer = pickle.dumps(error)
    pipes[number][1].send(answer)
    os._exit(0)


def _answer(receiving: Any) -> Any:
    if not receiving.poll(SECONDS):
        return TimeoutError("a rank gave no answer")
    try:
        return pickle.loads(receiving.recv())
    except EOFError:
        return RuntimeError("a rank died")


class TestPairLauncher(LauncherConformance):
    processes = SIZE

    def make(self) -> Any:
        return PairLauncher()


class Net(LightningModule):
    """Linear module whose weights depend on each sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).square().mean()
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(batch_size: int) -> DataLoader[Any]:
    """Return a loader of 24 samples in their order."""
    samples = torch.arange(96.0).reshape(24, 4) / 96
    return DataLoader(TensorDataset(samples), batch_size=batch_size)


def trainer_in(folder: Path, **flags: Any) -> Trainer:
    """Return a quiet trainer of two epochs."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(max_epochs=2, log_every_n_steps=1, default_root_dir=folder, **{**quiet, **flags})


@pytest.mark.parametrize("logger", [True, False])
def test_two_launched_ranks_are_one_training(tmp_path: Path, logger: bool) -> None:
    """Two fits on two launched ranks leave weights, optimizers, counters and history of two fits in one process."""
    here = trainer_in(tmp_path / "here", logger=logger)
    pair = trainer_in(tmp_path / "pair", logger=logger, launcher=PairLauncher(), strategy=DDPStrategy(), devices=SIZE)
    expected, found = Net(), Net()
    for epochs in (2, 3):
        here.max_epochs = pair.max_epochs = epochs
        here.fit(expected, loader(8), loader(8))
        pair.fit(found, loader(4), loader(4))
        assert pair.global_step == here.global_step == 3 * epochs
        assert pair.history["loss"] == pytest.approx(here.history["loss"], rel=1e-5)
        assert float(pair.callback_metrics["val_loss"]) == pytest.approx(
            float(here.callback_metrics["val_loss"]), rel=1e-5
        )
        torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)
    ours, theirs = (t.optimizers[0].state_dict()["state"][0]["momentum_buffer"] for t in (pair, here))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert pair.world_size == SIZE
    pair.save_checkpoint(tmp_path / "pair.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "pair.ckpt")
    torch.testing.assert_close(loaded.state_dict(), found.state_dict())
    measured = pair.validate(found, loader(4), verbose=False)
    assert measured == [pytest.approx(here.validate(expected, loader(8), verbose=False)[0], rel=1e-5)]


SCRIPT = """
import sys
from pathlib import Path
from test_launched_ranks import Net, loader, trainer_in
from lt_accel.strategies.ddp import DDPStrategy
from lt_interface import ConfigError

trainer = trainer_in(Path(sys.argv[1]), strategy=DDPStrategy(), logger=False, enable_checkpointing=False)
trainer.fit(Net(), loader(4), loader(4))
Path(sys.argv[1], f"rank{trainer.global_rank}").write_text(f"{trainer.world_size} {trainer.global_step}")
try:
    trainer_in(Path(sys.argv[1]), strategy=DDPStrategy(), devices=3)
except ConfigError as error:
    Path(sys.argv[1], f"error{trainer.global_rank}").write_text(str(error))
"""


@pytest.mark.slow
def test_torchrun_gives_devices_that_nobody_wrote(tmp_path: Path) -> None:
    """Under torchrun two processes are one training, and flags for another number are refused on each."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}"]
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(SIZE):
        assert (tmp_path / f"rank{rank}").read_text(encoding="utf-8") == f"{SIZE} 6"
        error = (tmp_path / f"error{rank}").read_text(encoding="utf-8")
        assert error.startswith("Trainer(devices=3): torchrun must have started one process for each device. Got 2 ")
