"""Save before a job of Slurm's ends, and put it into the queue again.

A signal that asks for this becomes a SIGTERM of this process, since the trainer stops for that one at the same step on
all ranks, wherever it came. The run's last hooks then save, together, and rank 0 asks for the job's next start if any
rank was asked to. Slurm answers with a SIGTERM to all tasks, which from then on ends nothing: the run is ending.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_accel.clusters.slurm import SlurmCluster

__all__ = ["Requeue"]


class Requeue:
    """What a trainer's fits do in a job.

    Args:
        cluster: The job.
    """

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster
        self._asked = self._watches = False
        self._handler: Any = signal.SIG_DFL
        self._stage = ""

    def attach(self, trainer: Any) -> None:
        """Take part in the runs of a trainer.

        Args:
            trainer: The trainer.
        """
        trainer.on("setup")(self.begin)
        if self.cluster.auto_requeue:
            trainer.on("exception")(self.save)
            trainer.on("teardown")(self.end)

    def begin(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Report when the job ends, and watch for the signal, unless the user has a handler of it.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: What begins.
        """
        self._asked = self._watches = False
        self._stage = stage
        if trainer.fast_dev_run:
            return
        if trainer.is_global_zero and stage == "fit":
            self._report_end()
        alone = trainer.world_size == 1
        main = threading.current_thread() is threading.main_thread()
        if not self.cluster.auto_requeue or not main or not (alone or self.cluster.creates_processes):
            return
        self._watches, number = True, self.cluster.requeue_signal
        if number is None or number in (signal.SIGINT, signal.SIGTERM):
            return
        if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
            self._handler = signal.signal(number, self._ask)
        elif trainer.is_global_zero:
            print(f"slurm: {number.name} has a handler already, so it requeues nothing.", file=sys.stderr, flush=True)

    def _report_end(self) -> None:
        left = self.cluster.seconds_left()
        if left is None:
            return
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + left))
        text = f"slurm: job {self.cluster.job} ends at {when}, in {timedelta(seconds=int(max(left, 0)))}."
        if self.cluster.auto_requeue and self.cluster.requeue_signal is not None:
            name = self.cluster.requeue_signal.name.removeprefix("SIG")
            text += f" Submitted with --signal={name}@90 it saves before that, and goes on in a new start."
        print(text, file=sys.stderr, flush=True)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked = True
            signal.raise_signal(signal.SIGTERM)

    def save(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Save where a signal ends a fit, and put the job into the queue again if that was asked for.

        Args:
            trainer: The trainer.
            pl_module: The module.
            exception: What ends the run.
        """
        asks = self.cluster.requeue_signal
        by = signal.SIGINT if isinstance(exception, KeyboardInterrupt) and asks == signal.SIGINT else None
        if isinstance(exception, SystemExit) and exception.code == 128 + signal.SIGTERM:
            by = signal.SIGTERM
        if not self._watches or by is None:
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if self._stage == "fit":
                trainer.save_checkpoint(self._path(trainer))
        except Exception as error:  # nothing to be saved yet, or a full disk: the job goes on from an earlier file
            warnings.warn(f"slurm: no checkpoint was saved. Got {type(error).__name__}: {error}", stacklevel=2)
        if trainer.collectives.any(self._asked or asks == by) and trainer.is_global_zero:
            done = self.cluster.run("scontrol", "requeue", self.cluster.job)
            if done is not None:
                print(f"slurm: job {self.cluster.job} is in the queue again.", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the signal to what it did before."""
        number = self.cluster.requeue_signal
        if number is not None and signal.getsignal(number) == self._ask:
            signal.signal(number, self._handler)

    def _path(self, trainer: Any) -> str:
        """Return where to save: where a fit that resumes looks for files."""
        folders = [folder for callback in trainer.checkpoint_callbacks for folder in callback.folders()]
        folder = folders[0] if folders else os.path.join(trainer.log_dir or trainer.default_root_dir, "checkpoints")
        return os.path.join(folder, f"slurm-{self.cluster.job}.ckpt")
