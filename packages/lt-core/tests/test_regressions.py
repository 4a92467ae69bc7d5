"""Keep what was once broken working."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

WORKERS = """
import sys, time, torch
from lt_core import LightningModule, Trainer

torch.set_num_threads(1)

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4000

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.ones(1)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        print("busy", flush=True)
        return self.layer(batch).sum()

    def teardown(self, stage):
        time.sleep(0.5)  # so that the workers' ends arrive meanwhile
        print("teardown", flush=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

flags = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
loader = torch.utils.data.DataLoader(Slow(), batch_size=4, num_workers=2, multiprocessing_context="fork")
Trainer(max_epochs=1, accelerator="cpu", **flags).fit(Net(), loader)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="process groups and forked workers")
def test_a_signal_to_workers_too_is_one_signal_and_ends_the_run_cleanly() -> None:
    """Ctrl-C in a terminal and a scheduler's SIGTERM reach workers as well: teardown runs, the exit code is right."""
    command = [sys.executable, "-W", "ignore", "-c", WORKERS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    processes = {n: subprocess.Popen(command, **pipes) for n in (signal.SIGINT, signal.SIGTERM)}  # type: ignore[call-overload]
    try:
        for number, process in processes.items():
            for _ in range(3):
                assert process.stdout.readline() == "busy\n"
            os.killpg(process.pid, number)
        for number, process in processes.items():
            out, err = process.communicate(timeout=60)
            assert out.splitlines()[-1:] == ["teardown"], err
            assert process.returncode in ((130, -signal.SIGINT) if number == signal.SIGINT else (143,)), err
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
