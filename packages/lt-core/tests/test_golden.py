"""Test that a run folder written by an earlier release is still read and resumed; `golden_job.py` wrote it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_core import Trainer
from lt_core.checkpoint import find_last, load_checkpoint, peek, verify

HERE = Path(__file__).parent
sys.path.append(str(HERE))

import golden_job  # noqa: E402

RELEASES = sorted(p.name for p in (HERE / "golden").iterdir())
VERSION = "logs/version_0"
KEYS = (
    "Data callback_metrics callbacks data datamodule_hparams_name datamodule_hyper_parameters epoch global_step "
    "handlers hparams_name hyper_parameters journal logged loops lr_schedulers lt_core_version metric_objects metrics "
    "optimizer_states progress rng schedule seed state_dict"
)


@pytest.fixture(params=RELEASES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a copy of a release's killed run, and what the unbroken one came to."""
    folder = HERE / "golden" / request.param
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", json.loads((folder / "outcome.json").read_text(encoding="utf-8"))


def numbers(row: str) -> list[float]:
    """Return the numbers of a CSV row, nan where there is none."""
    return [float(cell or "nan") for cell in row.split(",")]


@pytest.mark.filterwarnings("ignore")  # workers outlive a warning of fork, and old paths in the callbacks' states
@pytest.mark.parametrize("ckpt_path", ["last", "path"])
def test_a_killed_run_of_an_earlier_release_resumes_exactly(
    golden: tuple[Path, dict[str, Any]], ckpt_path: str
) -> None:
    """Sample ids, draws and counters come out as in the unbroken run, weights and metrics within 1e-6."""
    run, wanted = golden
    path = str(run / VERSION / "checkpoints" / "last.ckpt")
    torch.set_num_threads(1)
    trainer, net = golden_job.train(run, ckpt_path="last" if ckpt_path == "last" else path)
    got = json.loads(json.dumps(golden_job.outcome(trainer, net)))
    done = len(wanted["drawn"]) - len(got["drawn"])
    assert done == 15
    assert got["drawn"] == wanted["drawn"][done:]
    assert got["counters"] == wanted["counters"]
    assert got["random"] == wanted["random"]
    for name, value in wanted["weights"].items():
        torch.testing.assert_close(
            net.state_dict()[name], torch.tensor(value).type_as(net.state_dict()[name]), atol=1e-6, rtol=1e-6
        )
    assert got["metrics"] == pytest.approx(wanted["metrics"], abs=1e-6)
    if ckpt_path == "last":  # it goes on in the same folder
        assert {k: s for k, (_, s) in got["history"].items()} == {k: s for k, (_, s) in wanted["history"].items()}
        for name, (values, _) in wanted["history"].items():
            assert got["history"][name][0] == pytest.approx(values, abs=1e-6, nan_ok=True), name
        assert got["table"][0] == wanted["table"][0]
        assert [numbers(row) for row in got["table"][1:]] == [
            pytest.approx(numbers(row), abs=1e-6, nan_ok=True) for row in wanted["table"][1:]
        ]


def test_the_checkpoint_of_an_earlier_release_keeps_its_keys(golden: tuple[Path, dict[str, Any]]) -> None:
    """The header and the tree have the keys that programs look for."""
    path = golden[0] / VERSION / "checkpoints" / "last.ckpt"
    verify(path)
    assert find_last([path.parent]) == path
    header, tree = peek(path), load_checkpoint(path)
    assert tree["progress"] | {"save_counter": 0} == {
        "epoch": 1,
        "step": 8,
        "batch": 4,
        "batches": 11,
        "samples": 58,
        "epoch_closed": False,
        "save_counter": 0,
        "exact": True,
        "pending": None,
    }
    assert header["progress"] == {key: value for key, value in tree["progress"].items() if value is not None}
    assert " ".join(sorted(tree)) == KEYS


def test_the_journal_of_an_earlier_release_is_read(golden: tuple[Path, dict[str, Any]]) -> None:
    """Its history is the unbroken run's up to the kill, and the command reads the folder."""
    run, wanted = golden
    table = run / VERSION / "metrics.csv"
    table.unlink()  # what a tracker that was away all the time holds
    command = [sys.executable, "-m", "lt_core.journal", "replay", str(run / VERSION)]
    sent = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    with table.open(encoding="utf-8") as file:
        losses = [float(row["train_loss_step"]) for row in csv.DictReader(file) if row["train_loss_step"]]
    assert losses == pytest.approx(wanted["history"]["train_loss_step"][0][: len(losses)], abs=1e-6)
    assert len(losses) == 8


@pytest.mark.filterwarnings("ignore")
def test_weights_of_an_earlier_release_load(golden: tuple[Path, dict[str, Any]]) -> None:
    """load_from_checkpoint and validate take its file."""
    path = golden[0] / VERSION / "checkpoints" / "last.ckpt"
    net = golden_job.Net.load_from_checkpoint(path)
    assert net.hparams.width == 4
    data = golden_job.Data.load_from_checkpoint(path)
    assert data.hparams.batch_size == golden_job.BATCH
    trainer = Trainer(logger=False, enable_progress_bar=False, default_root_dir=golden[0])
    [metrics] = trainer.validate(golden_job.Net(), datamodule=data, ckpt_path=path, verbose=False)
    assert metrics["val_loss"] > 0
