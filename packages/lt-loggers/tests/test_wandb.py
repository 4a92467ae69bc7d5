"""WandbLogger starts, names and ends runs, and gives metrics their axes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from wandb_reading import (  # noqa: F401 - each file uses its part; quiet is a fixture
    OWN,
    STEP,
    Entry,
    axes,
    entries,
    everything,
    logs,
    marks,
    points,
    quiet,
    records,
    rows,
    wait_for_the_end,
)

import lt_loggers.wandb as home
from lt_interface import (
    DummyExperiment,
    Logger,
    MisconfigurationException,
    MissingPackageError,
    Record,
    SupportsCheckpoints,
    SupportsJoin,
    SupportsRecords,
    SupportsReplay,
    SupportsRewind,
    SupportsWatch,
)
from lt_interface.registry import loggers
from lt_interface.testing import LoggerConformance
from lt_loggers import WandbLogger


class TestWandbLogger(LoggerConformance):
    plugin = "wandb"

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        return points(logger)


def test_import_brings_no_tracker() -> None:
    """Importing the logger's module loads neither wandb nor torch nor numpy."""
    code = "import sys, lt_loggers.wandb; print(sorted({'torch', 'wandb', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_found_through_its_entry_point() -> None:
    """The registry gives the public class under its name."""
    assert loggers.get("wandb") is WandbLogger


@pytest.mark.parametrize("ability", [SupportsRecords, SupportsJoin, SupportsReplay, SupportsCheckpoints, SupportsWatch])
def test_abilities(tmp_path: Path, ability: Any) -> None:
    """The logger can go on in a run, resend, keep checkpoints and watch; it cannot forget."""
    logger = WandbLogger(save_dir=tmp_path)
    assert isinstance(logger, ability)
    assert not isinstance(logger, SupportsRewind)


# Identity


def test_folders_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Project, id and folder are known at once, and a new id is 8 letters or digits."""
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    logger = WandbLogger(save_dir=tmp_path)
    assert len(logger.version) == 8
    assert logger.version.isalnum()
    assert logger.version == logger.version.lower()
    assert logger.name == "lightning_logs"
    assert logger.directory == logger.log_dir == str(tmp_path / "lightning_logs" / logger.version)
    assert logger.root_dir == str(tmp_path / "lightning_logs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({"id": "one", "project": "p"}, {}, "p/one"),
        ({"version": "two", "project": "p"}, {}, "p/two"),
        ({"id": "one", "version": "two", "project": "p"}, {}, "p/one"),
        ({"id": "one"}, {"WANDB_PROJECT": "env"}, "env/one"),
        ({"project": "p"}, {"WANDB_RUN_ID": "given"}, "p/given"),
        ({"id": "one", "project": "p"}, {"WANDB_RUN_ID": "given"}, "p/one"),
    ],
)
def test_identity(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    environment: dict[str, str],
    expected: str,
) -> None:
    """Arguments come before the environment, and ``dir`` before ``save_dir``."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    logger = WandbLogger(save_dir="nowhere", dir=tmp_path, **options)
    assert logger.directory == str(tmp_path / expected)


def test_run_gets_all_arguments(tmp_path: Path) -> None:
    """Name, project, tags, notes, group, job type and configuration are in the run that is kept."""
    logger = WandbLogger(
        name="title",
        save_dir=tmp_path,
        id="abc",
        project="p",
        tags=["x", "y"],
        notes="why",
        group="g",
        job_type="fit",
        config={"from": {"init": 1}},
    )
    logger.log_hyperparams({"net": {"width": 3}, "lr": 0.1})
    logger.log_hyperparams(Namespace(lr=0.2))
    logger.finish("failed")
    (run,) = everything(logger, "run")
    assert (run.display_name, run.project, run.run_id) == ("title", "p", "abc")
    assert (list(run.tags), run.notes, run.run_group, run.job_type) == (["x", "y"], "why", "g", "fit")
    first = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert first["from"] == {"init": 1}
    later = {i.key: json.loads(i.value_json) for c in everything(logger, "config") for i in c.update}
    assert later["net"] == {"width": 3}
    assert later["lr"] == 0.2


def test_offline_by_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """offline=True needs no key and no server, whatever the environment says."""
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert logger.experiment.offline
    logger.finish("failed")


def test_settings_of_the_user_win(tmp_path: Path) -> None:
    """Settings come through whole, given as an object or as a dict; only what they leave open is filled in."""
    wandb_settings = wandb.Settings(init_timeout=77, disable_git=True)
    logger = WandbLogger(save_dir=tmp_path, settings=wandb_settings)
    assert logger.experiment.settings.init_timeout == 77
    assert logger.experiment.settings.disable_git
    assert logger.experiment.settings.finish_timeout == 30.0
    logger.finish("failed")
    assert wandb_settings.finish_timeout == 0.0


def test_joins_an_active_run(tmp_path: Path) -> None:
    """A run that the user started is joined with one warning, and stays open."""
    run = wandb.init(dir=tmp_path, id="mine", project="theirs")
    logger = WandbLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"active.*mine.*wandb\.finish") as caught:
        assert logger.version == "mine"
    assert len(caught) == 1
    assert logger.name == "theirs"
    assert logger.experiment is run
    logger.log_metrics({"loss": 1.0}, 2)
    logger.finish("failed")
    run.log({"more": 1.0})
    run.finish()
    wait_for_the_end(logger)
    assert points(logger)["loss"] == {2: 1.0}


def test_given_experiment(tmp_path: Path) -> None:
    """A run that is given is used, not finished, and gives its id."""
    run = wandb.init(dir=tmp_path, id="mine", project="theirs", reinit="create_new")
    logger = WandbLogger(save_dir=tmp_path, experiment=run)
    assert (logger.version, logger.name) == ("mine", "theirs")
    logger.log_metrics({"loss": 1.0}, 2)
    logger.finish("interrupted")
    run.log({"more": 1.0})
    run.finish()
    wait_for_the_end(logger)
    assert points(logger)["loss"] == {2: 1.0}


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Act as a process that a sweep's agent started: wandb reads the environment once."""
    wandb.teardown()
    with monkeypatch.context() as patch:
        for key, value in {"SWEEP_ID": "sweep1", "RUN_ID": "agent1", "PROJECT": "swept"}.items():
            patch.setenv(f"WANDB_{key}", value)
        yield
        wandb.teardown()


@pytest.mark.usefixtures("sweep")
def test_sweep_agent_wins(tmp_path: Path) -> None:
    """Inside a sweep, id and project are the agent's."""
    logger = WandbLogger(save_dir=tmp_path, project="other", id="mine")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finish("failed")
    assert (logger.version, logger.name) == ("agent1", "swept")
    (run,) = everything(logger, "run")
    assert (run.run_id, run.sweep_id, run.project) == ("agent1", "sweep1", "swept")


def test_open_after_success(tmp_path: Path) -> None:
    """A successful run takes the user's own calls after it, and is finished when the next logger starts one."""
    first = WandbLogger(save_dir=tmp_path, id="one")
    run = first.experiment
    first.log_metrics({"loss": 1.0}, 0)
    first.finish("success")
    run.log({"after": 2.0})
    second = WandbLogger(save_dir=tmp_path, id="two")
    second.log_metrics({"loss": 3.0}, 0)
    assert [code.exit_code for code in everything(first, "exit")] == [0]
    assert wandb.run is second.experiment
    second.finish("failed")
    found = points(first)
    assert found["loss"] == {0: 1.0}
    assert list(found["after"].values()) == [2.0]
    assert len(logs(first)) == 1


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 255)])
def test_exit_codes(tmp_path: Path, status: str, code: int) -> None:
    """A run that did not succeed is finished at once with an exit code that says so."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finish(status)
    assert [entry.exit_code for entry in everything(logger, "exit")] == [code]


def test_goes_on_after_the_user_finished(tmp_path: Path) -> None:
    """A run that the user finished goes on under its id at the next use."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    wandb.finish()
    logger.log_metrics({"loss": 2.0}, 1)
    logger.finish("failed")
    assert points(logger)["loss"] == {0: 1.0, 1: 2.0}
    assert {run.run_id for run in everything(logger, "run")} == {logger.version}


def test_join(tmp_path: Path) -> None:
    """A resumed trainer goes on in the old run, also while the old logger of this process has it open."""
    old = WandbLogger(save_dir=tmp_path)
    old.log_metrics({"loss": 1.0}, 0)
    new = WandbLogger(save_dir=tmp_path)
    new.join(old.version)
    assert (new.version, new.directory) == (old.version, old.directory)
    new.log_metrics({"loss": 2.0}, 1)
    new.finish("failed")
    assert points(new)["loss"] == {0: 1.0, 1: 2.0}


def test_prefix_and_own_names(tmp_path: Path) -> None:
    """A prefix stands before each name, and a name that W&B takes for itself is marked."""
    logger = WandbLogger(save_dir=tmp_path, prefix="pre")
    logger.log_metrics({"loss": 1.0, "epoch": 0.0}, 3)
    logger.log_records([Record(0, "validate", "epoch", 4, 5.0, {"acc": 0.5, "epoch": 1.0})])
    logger.finish("failed")
    assert points(logger) == {"pre-loss": {3: 1.0}, "pre-epoch": {3: 0.0, 4: 1.0}, "pre-acc": {1: 0.5}}
    plain = WandbLogger(save_dir=tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        plain.log_metrics({"_step": 7.0, "~_step": 8.0, "_timestamp": 9.0}, 3)
        plain.log_metrics({"_step": 7.0}, 4)
    assert [m for m in map(str, (w.message for w in warned)) if "to itself" in m] == [
        "WandbLogger: W&B keeps the name '_step' to itself; it is logged as '~_step', and each other name of that kind "
        "alike."
    ]
    plain.finish("failed")
    row = rows(plain)[0]
    assert (row["~_step"], row["~~_step"], row["~_timestamp"]) == (7.0, 8.0, 9.0)


def test_refuses_what_is_no_number(tmp_path: Path) -> None:
    """A metric that is no number is refused by name and type; one of nested numbers is taken."""
    logger = WandbLogger(save_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"WandbLogger.*loss='high' of type str.*experiment"):
        logger.log_metrics({"loss": "high"}, 0)
    logger.log_metrics({"loss": {"a": torch.tensor(1.5), "b": 2}}, 0)
    logger.finish("failed")
    assert points(logger) == {"loss/a": {0: 1.5}, "loss/b": {0: 2.0}}


@pytest.mark.parametrize(
    "options", [{"delivery": "later"}, {"log_model": "some"}, {"add_file_policy": "x"}, {"log_model": 2}]
)
def test_refuses_arguments(options: dict[str, Any]) -> None:
    """An argument that is out of range is refused at construction, with what is allowed."""
    with pytest.raises(MisconfigurationException, match="one of"):
        WandbLogger(**options)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wandb, construction fails with the exact pip command."""
    monkeypatch.setattr(home, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'lt-loggers\[wandb\]'"):
        WandbLogger()


# Processes


def test_other_ranks_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 3 nothing is started and no file is made."""
    monkeypatch.setenv("RANK", "3")
    logger = WandbLogger(save_dir=tmp_path, log_model="all")
    assert isinstance(logger.experiment, DummyExperiment)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_records(records(3), unsure=True)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_text("note", "text", step=1)
    logger.log_image("image", [torch.zeros(3, 2, 2)])
    logger.after_save_checkpoint(Namespace(best_model_path=__file__, save_top_k=1))
    logger.watch(torch.nn.Linear(1, 1))
    logger.finish("success")
    assert list(tmp_path.iterdir()) == []


def test_run_of_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """per_rank=True gives each process a run of its own, all in one group."""
    made = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        logger = WandbLogger(save_dir=tmp_path, id="abc", per_rank=True)
        logger.log_metrics({"loss": float(rank)}, 0)
        logger.finish("failed")
        made.append(logger)
    assert [logger.version for logger in made] == ["abc", "abc-rank-1"]
    runs = [run for logger in made for run in everything(logger, "run")]
    assert {run.run_id: (run.run_group, run.job_type) for run in runs} == {
        "abc": ("abc", "rank-0"),
        "abc-rank-1": ("abc", "rank-1"),
    }


def test_ranks_need_a_common_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """per_rank=True says what is missing where nothing names the group on all processes."""
    for key in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(MisconfigurationException, match=r"id=.*group="):
        _ = WandbLogger(save_dir=tmp_path, per_rank=True).version


# Axes


def test_axes(tmp_path: Path) -> None:
    """Metrics of steps, epochs and batches each get their own x-axis, and no step of W&B's own is set."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_records(
        [
            Record(0, "train", "step", 9, 1.5, {"loss": 1.0, "epoch": 0.0}),
            Record(1, "train", "epoch", 9, 2.5, {"a.b": 2.0, "epoch": 0.0}),
            Record(2, "validate", "batch", 3, 3.5, {"val_step": 3.0}),
            Record(3, "train", "epoch", 19, 4.5, {"a.b": 4.0, "epoch": 1.0}),
            Record(4, "validate", "batch", 0, 5.5, {"val_step": 5.0}),
        ]
    )
    logger.finish("failed")
    found = rows(logger)
    assert [row["_step"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["_timestamp"] for row in found] == [1.5, 2.5, 3.5, 4.5, 5.5]
    assert [row.get(STEP) for row in found] == [9, 9, None, 19, None]
    assert [row.get("validate/batch") for row in found] == [None, None, 3, None, 0]
    given = axes(logger)
    assert given["*"] == STEP
    assert given["a\\.b"] == "epoch"
    assert given["val_step"] == "validate/batch"
    assert given["validate/batch"] == ""
    assert given.get("loss", STEP) == STEP
    assert given.get("epoch", STEP) == STEP


def test_axes_of_the_user_stay(tmp_path: Path) -> None:
    """A metric that the user gave an axis, by name or by the beginning of names, keeps it; a summary is no axis."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.experiment.define_metric("mine", step_metric="tokens")
    logger.experiment.define_metric("their_*", step_metric="tokens")
    logger.experiment.define_metric("best", summary="max")
    values = {"mine": 1.0, "their_loss": 2.0, "best": 3.0, "other": 4.0, "epoch": 0.0}
    logger.log_records([Record(0, "train", "epoch", 9, 2.5, values)])
    logger.finish("failed")
    given = axes(logger)
    assert given["mine"] == given["their_*"] == "tokens"
    assert given.get("their_loss", "tokens") == "tokens"
    assert given["best"] == given["other"] == "epoch"


# Delivery


def test_no_key_in_state_or_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API key is neither in what a replay is made from nor in any file."""
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    settings = wandb.Settings(api_key=key)
    logger = WandbLogger(save_dir=tmp_path, settings=settings, config={"lr": 0.1}, entity="team", tags=("x",))
    logger.log_records(records(5))
    state = json.dumps(logger.replay_state())
    logger.finish("failed")
    assert key not in state
    assert [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()] == []
    again = WandbLogger.from_replay_state(json.loads(state))
    assert (again.version, again.name, again.directory) == (logger.version, logger.name, logger.directory)


def test_sync_accepts_the_run(tmp_path: Path) -> None:
    """``wandb sync`` finds all parts of a run that went on after a kill."""
    for first in (0, 5):
        logger = WandbLogger(save_dir=tmp_path, id="abc")
        logger.log_records(records(first + 5, start=first))
        logger.finish("failed")
    folders = [str(log.parent) for log in logs(logger)]
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *folders],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "WANDB_SILENT": "false"},
    )
    assert done.stdout.count("run-abc.wandb") + done.stderr.count("run-abc.wandb") == 2


def test_watch(tmp_path: Path) -> None:
    """Gradients and parameters of a watched model are in the run as histograms, every so many batches."""
    logger = WandbLogger(save_dir=tmp_path)
    net = torch.nn.Linear(3, 2)
    logger.watch(net, log="all", log_freq=2)
    for number in range(5):
        net(torch.ones(4, 3)).sum().backward()
        logger.log_records(records(number + 1, start=number))
    logger.unwatch(net)
    net(torch.ones(4, 3)).sum().backward()
    logger.finish("failed")
    shown = [row for row in rows(logger) if "gradients/weight/_type" in row]
    assert [row[STEP] for row in rows(logger) if row not in shown] == list(range(5))
    assert len(shown) == 2
    assert all(row["gradients/bias/_type"] == row["parameters/bias/_type"] == "histogram" for row in shown)
    with pytest.raises(MisconfigurationException, match=r"WandbLogger\.watch\(log='weights'\)"):
        logger.watch(net, log="weights")


def test_concurrent_use(tmp_path: Path) -> None:
    """Direct calls of the user's thread and records of another are all there once."""
    logger = WandbLogger(save_dir=tmp_path)
    batches: Sequence[list[Record]] = [records(n + 10, start=n) for n in range(0, 200, 10)]

    def feed() -> None:
        for batch in batches:
            with logger.exclusive():
                logger.log_records(batch)
                logger.save()

    thread = threading.Thread(target=feed)
    thread.start()
    for step in range(200):
        logger.log_metrics({"mine": float(step)}, step)
    thread.join(60)
    assert not thread.is_alive()
    logger.finish("failed")
    found = points(logger)
    assert found["mine"] == found["m0"] == {step: float(step) for step in range(200)}


@pytest.mark.parametrize(
    ("settings", "variables", "words"),
    [("None", {}, False), ("{'silent': False}", {}, True), ("None", {"WANDB_QUIET": "false"}, True)],
    ids=["as it is", "settings", "environment"],
)
def test_wandb_is_silent_unless_its_words_are_wanted(
    tmp_path: Path, settings: str, variables: dict[str, str], words: bool
) -> None:
    """A run writes one line about its place; what wandb itself writes comes where settings or environment say so."""
    code = (
        "from lt_loggers import WandbLogger; import wandb\n"
        f"logger = WandbLogger(save_dir={str(tmp_path)!r}, offline=True, settings={settings})\n"
        "logger.log_metrics({'loss': 1.0}, 0); logger.finalize('success'); wandb.finish()"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**kept, **variables}, check=True
    )
    written = done.stdout + done.stderr
    assert ("wandb: " in written) is words
    assert written.count("wandb sync") == 1
    if not words:
        (line,) = written.splitlines()
        assert line.startswith(f"W&B: the run is kept in {tmp_path}")
