"""Jobs of Slurm's that end too early: saved, put into the queue again, and gone on with in the next start."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lt_accel.strategies.ddp  # noqa: F401 - for the ranks that are forked
from lt_core import LightningModule, Trainer, seed_everything
from lt_core.callbacks import ModelCheckpoint
from lt_core.plugins.environments import SLURMEnvironment
from lt_interface import ConfigError
from lt_interface.testing.ranks import run_ranks

SECONDS = 120.0
STEPS = 18
CALLED = 'echo "$@" >> "$CALLS"'


class Net(LightningModule):
    """Module with dropout, which signals its process before one of its steps."""

    def __init__(self, at: dict[int, int] | None = None, number: int = signal.SIGUSR1, at_validation: bool = False):
        super().__init__()
        self.at, self.number, self.at_validation = at or {}, number, at_validation
        self.steps = 0
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.at.get(self.global_rank) == self.global_step and not self.at_validation:
            os.kill(os.getpid(), self.number)
        self.steps += 1
        loss: Tensor = self.layer(batch[0]).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if self.at.get(self.global_rank) == self.global_step and self.at_validation:
            os.kill(os.getpid(), self.number)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def slurm(rank: int, size: int, restarts: int = 0, **more: str) -> None:
    """Give this forked rank the variables of a task in place of its own."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) and name != "MASTER_PORT":
            del os.environ[name]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    place = {"PROCID": rank, "LOCALID": rank, "NODEID": 0, "NTASKS": size, "STEP_ID": 0, "RESTART_COUNT": restarts}
    names = {"JOB_ID": "812", "JOB_NAME": "train", "JOB_NODELIST": "localhost"}
    os.environ.update({f"SLURM_{name}": str(value) for name, value in {**place, **names}.items()})
    os.environ.update(more)


def fit(folder: Path, net: Net, ckpt_path: Any = None, **flags: Any) -> Any:
    """Train; return how that ended: steps in all and here, weights, exit code, and the lines of warnings."""
    seed_everything(1, verbose=False)
    samples = torch.arange(144.0).reshape(36, 4) / 144
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer = Trainer(**{**quiet, "max_epochs": 2, "default_root_dir": folder, **flags})
        data = DataLoader(TensorDataset(samples), batch_size=4 // trainer.world_size, shuffle=True)
        try:
            trainer.fit(net, data, DataLoader(TensorDataset(samples[:8]), batch_size=2), ckpt_path=ckpt_path)
            code = 0
        except SystemExit as error:
            code = int(str(error.code))
    weights = [value for p in net.parameters() for value in p.detach().flatten().tolist()]
    ours = [str(one.message) for one in seen if str(one.message).startswith("slurm")]
    return trainer.global_step, net.steps, weights, code, ours


def interrupted(call: Any) -> int:
    """Return the exit code with which a call ends."""
    try:
        call()
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return int(str(error.code))
    return 0


@pytest.fixture(autouse=True, scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import here what forked processes would each import for themselves."""
    fit(tmp_path_factory.mktemp("imported"), Net(), max_steps=1)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which the stand-in of scontrol notes how it was called."""
    tool(tmp_path, "scontrol", CALLED)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def tool(folder: Path, name: str, text: str) -> None:
    """Write a command of Slurm's."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def noted(calls: Path) -> list[str]:
    """Return the calls of scontrol."""
    return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


@pytest.mark.parametrize(("who", "saves"), [([0, 1], True), ([1], False)])
def test_a_job_goes_on_in_its_next_start(tmp_path: Path, calls: Path, who: list[int], saves: bool) -> None:
    """On the signal, to any rank, all save at one step and one requeues; the next start ends as if nothing had been."""
    folder = tmp_path / "run"

    def start(restarts: int, at: dict[int, int], root: Path) -> Any:
        def rank(number: int) -> Any:
            slurm(number, 2, restarts)
            return fit(root, Net(at), enable_checkpointing=saves, devices=2)

        return run_ranks(rank, timeout=SECONDS)

    whole = start(0, {}, tmp_path / "whole")
    first = start(0, dict.fromkeys(who, 11), folder)
    assert len({one[0] for one in first}) == 1
    assert 11 < first[0][0] < STEPS
    assert noted(calls) == ["requeue 812"]
    again = start(1, {}, folder)
    assert [one[3:] for one in (*first, *again)] == [(143, [])] * 2 + [(0, [])] * 2
    assert [one[1] for one in again] == [STEPS - first[0][0]] * 2
    assert [one[2] for one in again] == [one[2] for one in whole]
    assert noted(calls) == ["requeue 812"]


def one(rank: Any, **more: Any) -> Any:
    """Return what a forked process of its own returns."""
    return run_ranks(rank, size=1, timeout=SECONDS, **more)[0]


def test_slurm_may_end_what_it_requeues(tmp_path: Path, calls: Path) -> None:
    """The SIGTERM with which Slurm answers a requeue does not cut the run's end short; arrays name their task."""
    tool(tmp_path, "scontrol", f"{CALLED}\nkill -TERM $PPID\nsleep 0.3")

    def rank(number: int) -> Any:
        slurm(0, 1, SLURM_ARRAY_JOB_ID="800", SLURM_ARRAY_TASK_ID="12")
        return fit(tmp_path, Net({0: 5}))

    assert one(rank)[3:] == (143, [])
    assert noted(calls) == ["requeue 800_12"]
    assert [path.name for path in tmp_path.rglob("slurm-*.ckpt")] == ["slurm-800_12.ckpt"]


def test_a_requeue_that_fails_is_reported(tmp_path: Path, calls: Path) -> None:
    """Where scontrol refuses or is missing the checkpoint is there, the run ends, and a warning says why."""
    tool(tmp_path, "scontrol", "echo 'Access denied' >&2; exit 1")

    def rank(number: int) -> Any:
        slurm(0, 1)
        return fit(tmp_path / "a", Net({0: 5}))

    assert one(rank)[3:] == (143, ["slurm: `scontrol requeue 812` failed. Got Access denied."])
    (tmp_path / "scontrol").unlink()
    code, (line,) = one(rank)[3:]
    assert code == 143
    assert line.startswith("slurm: `scontrol requeue 812` failed. Got FileNotFoundError")
    assert list(tmp_path.rglob("slurm-812.ckpt"))


def test_a_sigterm_saves_and_requeues_nothing(tmp_path: Path, calls: Path) -> None:
    """Slurm's own SIGTERM, at the time limit or for a job that comes first, loses no step; only it requeues."""

    def rank(restarts: int, net: Net) -> Any:
        slurm(0, 1, restarts)
        return fit(tmp_path / "run", net)

    whole = one(lambda _: fit(tmp_path / "whole", Net()))
    assert one(lambda _: rank(0, Net({0: 7}, signal.SIGTERM)))[0::3] == (8, 143)
    assert noted(calls) == []
    assert one(lambda _: rank(1, Net())) == (STEPS, STEPS - 8, *whole[2:])


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_another_signal_may_requeue(tmp_path: Path, calls: Path, number: int) -> None:
    """The signal that `requeue_signal` names counts, and SIGTERM too if it is that."""

    def rank(_: int) -> Any:
        slurm(0, 1)
        return fit(tmp_path, Net({0: 5}, number), plugins=[SLURMEnvironment(requeue_signal=number)])

    assert one(rank)[3] == 143
    assert noted(calls) == ["requeue 812"]


@pytest.mark.parametrize("number", [signal.SIGKILL, 999, "SIGUSR1"])
def test_a_signal_that_cannot_be_handled_is_refused(number: Any) -> None:
    """A signal that no process can watch for is one error where it is named."""
    with pytest.raises(ConfigError, match=r"SLURMEnvironment\(requeue_signal=.*a signal that a process can handle"):
        SLURMEnvironment(requeue_signal=number)


def test_a_signal_in_validation_stops_there(tmp_path: Path, calls: Path) -> None:
    """A signal while validation runs ends it, and the next start validates and trains as if nothing had been."""

    def rank(restarts: int, net: Net) -> Any:
        slurm(0, 1, restarts)
        return fit(tmp_path / "run", net, num_sanity_val_steps=0)

    whole = one(lambda _: fit(tmp_path / "whole", Net(), num_sanity_val_steps=0))
    assert one(lambda _: rank(0, Net({0: 9}, at_validation=True)))[0::3] == (9, 143)
    assert one(lambda _: rank(1, Net())) == (STEPS, STEPS - 9, *whole[2:])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_in_a_call_without_training_requeues(tmp_path: Path, calls: Path, number: int) -> None:
    """Where validation alone runs there is nothing to save, and the job is put into the queue again."""

    def rank(_: int) -> Any:
        slurm(0, 1)
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1}
        trainer = Trainer(default_root_dir=tmp_path, plugins=[SLURMEnvironment(requeue_signal=number)], **quiet)
        data = DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=2)
        return interrupted(lambda: trainer.validate(Net({0: 0}, number, at_validation=True), data, verbose=False))

    assert one(rank) == (143 if number == signal.SIGUSR1 else 130)
    assert noted(calls) == ["requeue 812"]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_who_handles_the_signal_keeps_it(tmp_path: Path, calls: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A handler of the user's, or of a tool such as submitit, is left alone, as is the signal if nobody requeues."""
    heard: list[int] = []

    def rank(_: int) -> Any:
        slurm(0, 1)
        signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
        found = fit(tmp_path, Net({0: 5}))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        net = Net()
        kept: list[Any] = []
        net.on_train_start = lambda: kept.append(signal.getsignal(signal.SIGUSR1))  # type: ignore[method-assign]
        fit(tmp_path, net, plugins=[SLURMEnvironment(auto_requeue=False)])
        return found[0], found[3], heard, kept, signal.getsignal(signal.SIGUSR1)

    assert one(rank) == (STEPS, 0, [signal.SIGUSR1], [signal.SIG_DFL], signal.SIG_DFL)
    assert noted(calls) == []
    assert "SIGUSR1 has a handler already, so it requeues nothing" in capfd.readouterr().err


def test_the_signal_is_given_back(tmp_path: Path, calls: Path) -> None:
    """After a fit, and in a call that is no fit, the signal does what it did before."""

    def rank(_: int) -> Any:
        slurm(0, 1)
        fit(tmp_path, Net())
        return signal.getsignal(signal.SIGUSR1)

    assert one(rank) == signal.SIG_DFL


def test_the_job_comes_before_the_path_that_it_began_from(tmp_path: Path, calls: Path) -> None:
    """A restarted job goes on where it was, whatever ckpt_path its script gives; one that has nothing follows that."""
    saver = ModelCheckpoint(dirpath=tmp_path / "pre", filename="start")

    def start(restarts: int, net: Net, **more: str) -> Any:
        def rank(_: int) -> Any:
            slurm(0, 1, restarts, **more)
            return fit(tmp_path / "run", net, str(tmp_path / "pre" / "start.ckpt"))

        return one(rank)

    one(lambda _: fit(tmp_path / "pre", Net(), max_steps=3, callbacks=[saver]))
    other = {"SLURM_JOB_ID": "900"}
    assert start(0, Net({0: 11}))[0::3] == (12, 143)
    first = start(1, Net({0: 11}))  # on the job's own file, which is behind that step
    assert first[:2] == (STEPS, STEPS - 12)
    assert start(1, Net({0: 3}), **other)[:2] == (4, 1)  # from the given file, since that job has none
    assert start(2, Net(), **other)[:3] == (STEPS, STEPS - 4, first[2])


def test_a_job_that_was_not_restarted_begins_anew(tmp_path: Path, calls: Path) -> None:
    """A first start resumes nothing by itself, and neither does a restarted one without auto_requeue."""

    def rank(restarts: int, **flags: Any) -> Any:
        slurm(0, 1, restarts)
        return fit(tmp_path / "run", Net({0: 11}), **flags)

    assert one(lambda _: rank(0))[:2] == (12, 12)
    assert one(lambda _: rank(0))[:2] == (12, 12)
    # Not resumed: step 11 is passed, and the signal there is not watched for.
    alone = SLURMEnvironment(auto_requeue=False)

    def ignoring(_: int) -> Any:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        seen: list[int] = []
        slurm(0, 1, 1)
        net = Net()
        net.on_train_start = lambda: seen.append(net.global_step)  # type: ignore[method-assign]
        fit(tmp_path / "run", net, plugins=[alone])
        return seen

    assert one(ignoring) == [0]


@pytest.mark.parametrize(
    ("variables", "left", "expected"),
    [
        ({"SLURM_JOB_END_TIME": "{end}"}, None, "0:5"),
        ({}, "1-02:03:04", "1 day, 2:03:04"),
        ({}, "59:30", "0:59:30"),
        ({}, "UNLIMITED", None),
        ({}, None, None),
    ],
)
def test_the_end_of_the_job_is_reported(
    tmp_path: Path,
    calls: Path,
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    left: str | None,
    expected: str | None,
) -> None:
    """A fit says at its start when Slurm will end the job, from its variable or squeue, and what would save it."""
    if left is not None:
        tool(tmp_path, "squeue", f'[ "$3" = 812 ] && echo "{left}"')
    more = {name: value.format(end=int(time.time()) + 3600) for name, value in variables.items()}

    def rank(_: int) -> Any:
        slurm(0, 1, **more)
        return fit(tmp_path, Net(), max_steps=1)

    assert one(rank)[3:] == (0, [])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("slurm:")]
    assert len(lines) == (expected is not None)
    if expected is not None:
        assert lines[0].startswith("slurm: job 812 ends at 20")
        assert f", in {expected}" in lines[0]
        assert lines[0].endswith("Submitted with --signal=USR1@90 it saves before that, and goes on in a new start.")
