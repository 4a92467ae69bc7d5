"""Programs whose ranks a launcher starts: the same result as one process, and nothing left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launched_job import PROGRAM, left, start

LEAVE = """
def leave(when):
    if os.environ.get("LEAVES") == when and os.environ.get("LT_LAUNCHED_RANK") == "1":
        sys.exit(0)
"""
LONG_STEP = """    def training_step(self, batch, batch_idx):
        import hashlib
        print("step", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)"""
SECONDS = 120.0


def result(process: subprocess.Popen[str]) -> Any:
    """Return what the program printed."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return json.loads(out)


def gone_in_time(folder: Path) -> None:
    """Check that no process of the program is left some seconds later."""
    until = time.monotonic() + 6.0
    while left(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert left(folder) == []


@pytest.mark.parametrize("launcher", ["subprocess", pytest.param("fork", marks=pytest.mark.slow)])
def test_a_launcher_by_name(launcher: str, tmp_path: Path) -> None:
    """A launcher that is named starts the ranks, and its ranks start none."""
    program = PROGRAM.replace("logger=False,", f"logger=False, launcher={launcher!r},")
    assert result(start(tmp_path, "ddp", "2", "0", program=program))[2] == 10
    assert left(tmp_path) == []


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_two_ranks_train_as_one_process(strategy: str, tmp_path: Path) -> None:
    """A script whose ranks are started in any way prints what it prints with one process."""
    weights, values, steps = result(start(tmp_path, "auto", "1", "0"))
    found = result(start(tmp_path, strategy, "2", "0"))
    assert found[0][0] == pytest.approx(weights[0], abs=1e-6)
    assert found[1] == pytest.approx(values, rel=1e-5)
    assert found[2] == steps
    assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["setup", "step", "validation", "save"])
@pytest.mark.parametrize("fault", ["raise-0", "raise-1", "kill-0", "kill-1"])
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork", "ddp_spawn"])
def test_a_rank_that_fails_ends_all(strategy: str, fault: str, place: str, tmp_path: Path) -> None:
    """After an error or the death of a rank every process is gone, the exit code says so and the rank is named."""
    process = start(tmp_path, strategy, "2", "1", FAULT=f"{fault}-{place}")
    _, err = process.communicate(timeout=SECONDS)
    gone_in_time(tmp_path)
    assert process.returncode != 0
    kind, _, rank = fault.partition("-")
    if kind == "raise":
        assert f"ValueError: no {place} here" in err
        assert f"rank {rank}" in err or strategy == "ddp"
    elif strategy == "ddp" and rank == "0":
        assert process.returncode == -signal.SIGKILL
    else:
        assert f"rank {rank}: it must run" in err


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("end", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM])
def test_ranks_end_with_the_process_that_started_them(strategy: str, end: int, tmp_path: Path) -> None:
    """When the first process is killed or asked to stop while its ranks train, they and their workers are gone soon."""
    slow = "    def training_step(self, batch, batch_idx):\n        print('step', flush=True)\n        time.sleep(0.2)"
    program = PROGRAM.replace("    def training_step(self, batch, batch_idx):", slow)
    process = start(tmp_path, strategy, "2", "1", program=program)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["step", "step"]  # one of each: they meet in it
    assert len(left(tmp_path)) > 2
    process.send_signal(end)
    process.communicate(timeout=SECONDS)
    gone_in_time(tmp_path)
    assert process.returncode == (-end if end == signal.SIGKILL else 128 + end)


@pytest.mark.slow
def test_a_program_that_a_rank_starts_is_no_rank(tmp_path: Path) -> None:
    """A program with a trainer of its own, started by a rank, is a training of its own, and ends nothing else."""
    alone = (
        "from lt_core import Trainer; print('alone', Trainer(devices=1, accelerator='cpu', logger=False).world_size)"
    )
    begun = f"import subprocess\n    subprocess.run([sys.executable, '-c', {alone!r}], check=True)\n    trainer.fit("
    process = start(tmp_path, "ddp", "2", "0", program=PROGRAM.replace("trainer.fit(", begun))
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out.count("alone 1") == 2


def test_a_signal_that_reaches_ranks_twice_counts_once(tmp_path: Path) -> None:
    """Where a supervisor signals every process, ranks in a long call end in order: the first process adds nothing."""
    program = PROGRAM.replace(
        "    def predict_step",
        "    def teardown(self, stage):\n        print('teardown', flush=True)\n\n    def predict_step",
    )
    program = program.replace("    def training_step(self, batch, batch_idx):", LONG_STEP)
    process = start(tmp_path, "ddp_fork", "2", "0", program=program)
    assert process.stdout is not None
    assert "step" in process.stdout.readline()
    for rank in left(tmp_path):
        os.kill(rank, signal.SIGTERM)
    out, err = process.communicate(timeout=SECONDS)
    assert out.count("teardown") == 2, err
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("when", ["before", pytest.param("between", marks=pytest.mark.slow)])
def test_a_rank_whose_script_ends_early(when: str, tmp_path: Path) -> None:
    """A rank that comes to the script's end while others begin a call ends them, by its name; nobody waits for it."""
    program = PROGRAM.replace("    (values,)", "    leave('between')\n    (values,)")
    program = program.replace("def main(", f"{LEAVE}\n\ndef main(").replace(
        "    net = Net()", "    leave('before')\n    net = Net()"
    )
    process = start(tmp_path, "ddp", "2", "0", program=program, LEAVES=when)
    _, err = process.communicate(timeout=SECONDS)
    gone_in_time(tmp_path)
    assert process.returncode == 1
    assert "RankFailedError: rank 1: it " in err


HYDRA = """
import hydra

@hydra.main(version_base=None, config_path=None)
def run(config):
    main("ddp", 2, 0)

if __name__ == "__main__":
    run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", [False, True])
def test_a_script_that_has_left_its_folder(module: bool, tmp_path: Path) -> None:
    """Ranks find the script again that was started by a relative path, or as a module, and has changed its folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "package").mkdir()
    program = PROGRAM.replace("    main(sys", '    os.chdir("out")\n    main(sys')
    (tmp_path / "package" / "train.py").write_text(program, encoding="utf-8")
    how = ["-m", "package.train"] if module else ["./package/train.py"]
    command = [sys.executable, *how, "ddp", "2", "0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "package"]


@pytest.mark.parametrize("sweep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_script_of_hydra_s(sweep: bool, tmp_path: Path) -> None:
    """Hydra's folders and files are those of one process, in a run and in a sweep; each job trains on all ranks."""
    pytest.importorskip("hydra")
    program = PROGRAM[: PROGRAM.index("if __name__")] + HYDRA
    more = ["-m", "+a=1,2"] if sweep else ["+a=1"]
    process = start(tmp_path, *more, "hydra.job.chdir=true", program=program)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out.count("[[[") == len(more)
    assert len(list(tmp_path.rglob("config.yaml"))) == len(list(tmp_path.rglob("*.ckpt"))) == len(more)
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "multirun" if sweep else "outputs"}


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("ddp", "each rank runs the script again, so there must be one. Got an interactive session or standard input"),
        ("ddp_spawn", "new processes must be able to import the main script. Got <stdin>"),
    ],
)
def test_a_program_from_standard_input(strategy: str, reason: str, tmp_path: Path) -> None:
    """A program that was piped in is refused by launchers that need its file, with one that does not; fork runs it."""
    program = PROGRAM.replace("main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))", f"main({strategy!r}, 2, 0)")
    ended = subprocess.run(
        [sys.executable, "-"], input=program, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert "ddp_fork" in ended.stderr or "ddp_notebook" in ended.stderr


@pytest.mark.slow
def test_a_class_below_the_main_guard(tmp_path: Path) -> None:
    """A class that new interpreters do not define is one error with where to define it, or how to do without."""
    guard = 'if __name__ == "__main__":\n'
    assert guard in PROGRAM
    program = PROGRAM.replace(guard, f"{guard}    class Below(Net): pass\n    Net = Below\n")
    ended = start(tmp_path, "ddp_spawn", "2", "0", program=program)
    errors = ended.communicate(timeout=SECONDS)[1]
    assert ended.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert "Trainer.fit, launcher 'spawn': other processes must be able to make what they are given" in last
    assert "Can't get attribute 'Below'" in last
    assert last.endswith('above its main guard. Or write strategy="ddp_fork".')


def test_an_interactive_session_forks(tmp_path: Path) -> None:
    """Where no script can be run again, the default for two devices is the strategy for notebooks."""
    program = PROGRAM.replace('if __name__ == "__main__":\n', "sys.ps1 = '>>> '\nif True:\n")
    program = program.replace("main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))", 'main("auto", 2, 0)')
    program = program.replace("    trainer.fit(", "    assert trainer.strategy.name == 'ddp_fork'\n    trainer.fit(")
    ended = subprocess.run(
        [sys.executable, "-"], input=program, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stderr
