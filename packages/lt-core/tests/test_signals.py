"""Send signals to training and check that it ends in order, can be resumed, and never hangs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lt_interface.errors import SIGTERMException

BATCHES = [torch.full((2, 1), float(i)) for i in range(6)]


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "num_sanity_val_steps": 0, "max_epochs": 2, **flags})


class Net(LightningModule):
    """Module that sends its process a signal in one place, once, and notes what comes after."""

    def __init__(self, number: int | None = None, place: str = "train", at: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.signal, self.at = number, (place, at)
        self.events: list[str] = []

    def note(self, place: str, index: int) -> None:
        if self.signal is not None and (place, index) == self.at:
            number, self.signal = self.signal, None
            os.kill(os.getpid(), number)
        self.events.append(f"{place} {index}")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("train", batch_idx)
        return self.layer(batch + 0.1 * torch.rand(1)).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.events.append(f"end {batch_idx}")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("val", batch_idx)

    def teardown(self, stage: str) -> None:
        self.events.append(f"teardown {stage}")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def weights(net: Net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def stop(net: Net, run: Trainer) -> BaseException:
    """Fit, and return what came out of it instead of a result."""
    torch.manual_seed(5)
    try:
        run.fit(net, BATCHES, BATCHES[:2])
    except (KeyboardInterrupt, SystemExit) as error:
        return error
    raise AssertionError("fit was not stopped")


def test_sigint_is_a_keyboard_interrupt_at_the_next_boundary() -> None:
    """The batch is finished, with its end hooks; then everything is torn down and the error is raised."""
    net, run = Net(signal.SIGINT), trainer()
    assert isinstance(stop(net, run), KeyboardInterrupt)
    assert net.events[-3:] == ["train 2", "end 2", "teardown fit"]
    assert run.global_step == 3
    assert run.interrupted
    assert not run.received_sigterm


def test_sigterm_is_a_system_exit_with_143() -> None:
    """SIGTERM ends fit in the same way, with the exit code that shells expect; on_exception is called."""
    net, run = Net(signal.SIGTERM), trainer()
    seen: list[Any] = []
    run.on("exception")(lambda exception, trainer: seen.append((type(exception), trainer.received_sigterm)))
    error = stop(net, run)
    assert isinstance(error, SIGTERMException)
    assert error.code == 143
    assert seen == [(SIGTERMException, True)]
    assert net.events[-1] == "teardown fit"


def test_a_signal_waits_for_an_open_accumulation_window() -> None:
    """With windows of four, a signal in the first batch is obeyed after the fourth."""
    net, run = Net(signal.SIGINT, at=0), trainer(accumulate_grad_batches=4)
    stop(net, run)
    assert net.events[-3:] == ["train 3", "end 3", "teardown fit"]
    assert run.global_step == 1


def test_a_save_of_the_batch_in_which_a_signal_came_is_written(tmp_path: Path) -> None:
    """What was to be saved after the batch is saved before the signal is raised: on_exception finds it."""
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run, found = trainer(callbacks=[saves], enable_checkpointing=True), []
    run.on("exception")(lambda: found.append(sorted(path.name for path in tmp_path.glob("*.ckpt"))))
    stop(Net(signal.SIGTERM), run)
    assert found == [["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]]


@pytest.mark.parametrize("place", [("train", 2), ("train", 5), ("val", 0), ("val", 1)])
@pytest.mark.parametrize("saves", ["model_checkpoint", "on_exception"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path: Path, place: tuple[str, int], saves: str) -> None:
    """The file that is saved when a signal stops a run resumes it as if nothing had happened."""
    whole = Net()
    torch.manual_seed(5)
    trainer(val_check_interval=3).fit(whole, BATCHES, BATCHES[:2])

    def saving() -> Any:
        if saves == "on_exception":
            return OnExceptionCheckpoint(tmp_path)
        return ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=10)

    net = Net(signal.SIGTERM, *place)
    stop(net, trainer(val_check_interval=3, callbacks=[saving()], enable_checkpointing=True))
    (file,) = tmp_path.glob("*.ckpt")
    again = Net()
    torch.manual_seed(99)
    run = trainer(val_check_interval=3, callbacks=[saving()], enable_checkpointing=True)
    run.fit(again, BATCHES, BATCHES[:2], ckpt_path=file)
    assert torch.equal(weights(whole), weights(again))
    assert run.global_step == 12


def test_handlers_are_put_back() -> None:
    """After fit the process's own handlers are installed again, also when it failed."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], signal.set_wakeup_fd(-1)
    net, run = Net(), trainer(max_epochs=1)
    inside: list[Any] = []
    run.on("train_start")(lambda: inside.append(signal.getsignal(signal.SIGTERM)))
    run.fit(net, BATCHES, BATCHES[:2])
    stop(Net(signal.SIGTERM), trainer())
    assert inside[0] not in before[0]
    assert ([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], signal.set_wakeup_fd(-1)) == before
    assert not [t for t in threading.enumerate() if t.name == "lt-signals"]


def test_the_users_own_handler_is_called_too() -> None:
    """A handler that was there before runs as well."""
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        stop(Net(signal.SIGTERM), trainer())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [signal.SIGTERM]


def test_nothing_is_installed_outside_the_main_thread() -> None:
    """A fit in another thread trains and leaves the signal handlers alone."""
    net, run = Net(), trainer(max_epochs=1)
    before, inside = signal.getsignal(signal.SIGTERM), []
    run.on("train_start")(lambda: inside.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=run.fit, args=(net, BATCHES, BATCHES[:2]))
    thread.start()
    thread.join(60)
    assert inside == [before]
    assert run.global_step == 6


PROGRAM = """
import os, signal, sys, time
if sys.argv[1] == "fork":  # a signal to the group that finds a new worker before anything else does
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
import torch
from lt_core import Trainer
from lt_core.demos import BoringModel

torch.set_num_threads(1)

class Net(BoringModel):
    def training_step(self, batch, batch_idx):
        print("busy", flush=True)
        if sys.argv[1] == "sleep":
            time.sleep(60)
        elif sys.argv[1] == "svd":
            torch.linalg.svd(torch.randn(4000, 4000))
        elif sys.argv[1] == "fork":
            os.fork() or os._exit(0)
            time.sleep(0.3)
        else:
            time.sleep(0.3)
        return super().training_step(batch, batch_idx)

    def teardown(self, stage):
        print("teardown", flush=True)

flags = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
Trainer(max_epochs=1, limit_val_batches=0, accelerator="cpu", **flags).fit(Net())
"""


def start(mode: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True)


def wait_until_busy(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"


def test_processes_end_with_the_right_code_and_the_second_signal_ends_them_at_once() -> None:
    """One signal: a clean end with 130 or 143. A second one ends a process stuck in a long C call within a second.

    A worker's own signal is none of its parent's. A terminal has its cursor again.
    """
    cases = {"sleep": signal.SIGINT, "svd": signal.SIGTERM, "int": signal.SIGINT, "term": signal.SIGTERM}
    cases |= {"fork": signal.SIGINT} if hasattr(os, "fork") else {}
    screen, terminal = os.openpty()
    processes = {mode: start(mode, terminal if mode == "sleep" else subprocess.PIPE) for mode in cases}
    os.close(terminal)
    try:
        for mode, process in processes.items():
            wait_until_busy(process)
            process.send_signal(cases[mode])
        for mode in ("sleep", "svd"):
            process = processes[mode]
            time.sleep(0.3)
            assert process.poll() is None, "one signal waits for the step"
            began = time.monotonic()
            process.send_signal(cases[mode])
            assert process.wait(20) == 128 + cases[mode]
            assert time.monotonic() - began < 1.0
        assert b"\x1b[?25h\r" in os.read(screen, 4096)
        for mode in [*cases][2:]:
            out, err = processes[mode].communicate(timeout=60)
            assert out.splitlines()[-1] == "teardown"
            code = processes[mode].returncode
            assert code in ((143,) if mode == "term" else (130, -signal.SIGINT))  # the shell shows -2 as 130
            assert ("KeyboardInterrupt" in err) == (mode != "term")
    finally:
        os.close(screen)
        for process in processes.values():
            process.kill()
            process.communicate()


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


@pytest.mark.slow
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


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SIGTERMException), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("hook", ["prepare_data", "setup", "configure_model", "configure_optimizers", "val_dataloader"])
def test_a_signal_while_the_run_is_built_ends_it_at_once(
    tmp_path: Path, hook: str, number: int, error: type[BaseException]
) -> None:
    """SIGTERM and SIGINT in a hook that prepares interrupt it there; the run is torn down, handlers are put back."""
    reached: list[str] = []

    def signalled(self: Any, *args: Any) -> None:
        os.kill(os.getpid(), number)
        reached.append("the line after")

    net = type("Signalled", (Net,), {hook: signalled})()
    before = signal.getsignal(number)
    loader = None if hook == "val_dataloader" else BATCHES[:2]
    with pytest.raises(error):
        trainer(default_root_dir=tmp_path, num_sanity_val_steps=2).fit(net, BATCHES, loader)
    assert not reached
    assert net.events == ["teardown fit"]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SIGTERMException), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("place", ["step", "on_{}_start", "on_{}_end"])
def test_a_signal_outside_of_a_fit_ends_after_the_batch(
    tmp_path: Path, stage: str, place: str, number: int, error: type[BaseException]
) -> None:
    """A signal in validation, test or prediction ends it after the running batch, the next one, or at the end."""
    done: list[int] = []
    name = "validation" if stage == "validate" else stage

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if place == "step" and batch_idx == 1:
            os.kill(os.getpid(), number)
        done.append(batch_idx)
        return batch

    def signalled(self: Any) -> None:
        os.kill(os.getpid(), number)

    hooks = {f"{name}_step": step} | ({} if place == "step" else {place.format(name): signalled})
    net = type("Signalled", (Net,), hooks)()
    with pytest.raises(error):
        getattr(trainer(default_root_dir=tmp_path), stage)(net, BATCHES)
    assert done == {"step": [0, 1], "on_{}_start": [0], "on_{}_end": list(range(6))}[place]
    assert net.events[-1] == f"teardown {stage}"


@pytest.mark.parametrize("saves", ["model_checkpoint", "on_exception"])
def test_a_signal_never_begins_a_validation(tmp_path: Path, saves: str) -> None:
    """One that comes in the batch after which validation is due leaves it to the run that resumes."""
    callback: Any = OnExceptionCheckpoint(tmp_path)
    if saves == "model_checkpoint":
        callback = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=10)
    net = Net(signal.SIGTERM, "train", 2)
    stop(net, trainer(val_check_interval=3, callbacks=[callback], enable_checkpointing=True))
    assert net.events == ["train 0", "end 0", "train 1", "end 1", "train 2", "end 2", "teardown fit"]
    (file,) = tmp_path.glob("*.ckpt")
    again = Net()
    run = trainer(val_check_interval=3, max_epochs=1, callbacks=[callback], enable_checkpointing=True)
    run.fit(again, BATCHES, BATCHES[:2], ckpt_path=file)
    assert again.events[:4] == ["val 0", "val 1", "train 3", "end 3"]


def test_a_signal_inside_validation_ends_after_the_batch_and_the_resume_validates_anew(tmp_path: Path) -> None:
    """The rest of it is left out, its end hooks too, and the resumed run begins with its first batch."""
    net = Net(signal.SIGTERM, "val", 0)
    stop(net, trainer(val_check_interval=3, callbacks=[OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True))
    assert net.events[-3:] == ["end 2", "val 0", "teardown fit"]
    (file,) = tmp_path.glob("*.ckpt")
    again = Net()
    trainer(val_check_interval=3, max_epochs=1).fit(again, BATCHES, BATCHES[:2], ckpt_path=file)
    assert again.events[:4] == ["val 0", "val 1", "train 3", "end 3"]


def test_a_run_leaves_no_open_file_and_no_thread() -> None:
    """What watches for signals is gone when the run has ended, its pipe too."""

    def open_now() -> tuple[int, int]:
        gc.collect()  # a run without a folder has its journal's file for as long as its trainer lives
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    trainer(max_epochs=1).fit(Net(), BATCHES, BATCHES[:1])
    before = open_now()
    for _ in range(3):
        trainer(max_epochs=1).fit(Net(), BATCHES, BATCHES[:1])
    assert open_now() == before
