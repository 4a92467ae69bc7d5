"""Whatever becomes of the tracker or the trainer, every value is in the tracker once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_proxy import FaultProxy
from mlflow_server import mlflow_server
from tracked_job import Net, batches, make_trainer
from tracker_reading import due, in_mlflow, in_tensorboard, in_wandb, journal_of, rounded, wandb_rows

from lt_core.journal.__main__ import main as journal_command
from lt_core.tracking import sender as delivery_module
from lt_loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

JOB = Path(__file__).with_name("tracked_job.py")
STEPS = 60
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU available|.*lightning_logs"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of a real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Return a proxy before the server, and let deliveries try again soon."""
    monkeypatch.setattr(delivery_module, "FIRST_RETRY_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with FaultProxy(server) as made:
        yield made


def train(logger: Any, folder: Path, meanwhile: Callable[[], Any] | None = None, sleep: float = 0.02) -> list[str]:
    """Train while a thread does something to the tracker; return the warnings."""
    torch.manual_seed(0)
    trainer = make_trainer(logger, str(folder))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        thread = threading.Thread(target=meanwhile or (lambda: None))
        trainer.on("train_start")(thread.start)

        @trainer.on("train_batch_end")
        def meet(*_: Any) -> None:
            if trainer.global_step == STEPS - 10:  # an outage in the middle ends before the run does
                thread.join()

        trainer.fit(Net(sleep), batches(STEPS))
        thread.join()
    assert trainer.global_step == STEPS
    return [str(w.message) for w in warned if "Logger" in str(w.message)]


def outage(proxy: FaultProxy, mode: str, seconds: float, **how: Any) -> Callable[[], None]:
    def breaks() -> None:
        time.sleep(0.3)
        proxy.set(mode, **how)
        end = time.monotonic() + 20
        while mode != "refuse" and not proxy.seen[mode] and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(seconds)
        proxy.set("pass")

    return breaks


FAULTS = ["500", "429", "503", "refuse", "reset", "lost_reply", "half", "hang"]


@pytest.mark.parametrize("mode", [m if m == "lost_reply" else pytest.param(m, marks=pytest.mark.slow) for m in FAULTS])
def test_outage_in_the_middle(mode: str, proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """While the server fails in any way training goes on with one warning, and afterwards every value is there once."""
    logger = MLFlowLogger("faults", tracking_uri=proxy.url, save_dir=tmp_path)
    _ = logger.experiment
    warned = train(logger, tmp_path, outage(proxy, mode, 0.8, path="log-batch"))
    assert proxy.seen[mode] or mode == "refuse"
    assert sum("logging failed" in message for message in warned) == 1
    assert in_mlflow(f"http://127.0.0.1:{server}", str(logger.run_id)) == due(tmp_path)
    assert logger.experiment.get_run(logger.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_server_that_hangs_to_the_end(proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """A server that answers nothing for a minute slows neither training nor its end, and a replay sends the rest."""
    logger = MLFlowLogger("hangs", tracking_uri=proxy.url, save_dir=tmp_path)
    _ = logger.experiment
    begun = time.monotonic()
    warned = train(logger, tmp_path, lambda: proxy.set("hang", delay=60.0))
    assert time.monotonic() - begun < 45
    assert proxy.seen["hang"]
    assert [m for m in warned if f"replay {journal_of(tmp_path).parent}" in m]
    proxy.set("pass")
    end = time.monotonic() + 60  # the thread that was left behind gets its answer first, and lets go
    while journal_command(["replay", str(journal_of(tmp_path).parent)]) == 2:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert in_mlflow(f"http://127.0.0.1:{server}", str(logger.run_id)) == due(tmp_path)


@pytest.mark.slow
def test_direct_calls_and_pictures_in_an_outage(proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """What the module sends itself while the server is away ends no step and no run, and is there afterwards, once."""

    class Direct(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.logger.log_metrics({"own": float(batch_idx)}, step=batch_idx)
            if batch_idx == 20:
                self.logger.log_text("note", "hello")
            if batch_idx == 10:
                proxy.set("lost_reply")
            if batch_idx == 40:
                proxy.set("pass")
            return super().training_step(batch, batch_idx)

    logger = MLFlowLogger("direct", tracking_uri=proxy.url, save_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(logger, str(tmp_path)).fit(Direct(0.03), batches(STEPS))
    found = in_mlflow(f"http://127.0.0.1:{server}", str(logger.run_id))
    assert found.pop("own") == Counter((step, float(step)) for step in range(STEPS))
    assert found == due(tmp_path)
    assert [a.path for a in logger.experiment.list_artifacts(logger.run_id, "text/note")] == ["text/note/step_20.txt"]


@pytest.mark.slow
def test_two_processes_make_one_database(tmp_path: Path) -> None:
    """Two runs that start at once with a database that is not there yet both come to their end."""
    uri = f"sqlite:///{tmp_path}/new.db"
    command = [sys.executable, str(JOB), "mlflow", "--steps", "5", "--option", f"tracking_uri={uri}"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    runs = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    for run in runs:
        output = run.communicate(timeout=300)[0].decode()
        assert run.returncode == 0, output


@pytest.mark.slow
def test_slow_replies(proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """A server that needs two seconds for every reply gets everything, and nobody is warned."""
    logger = MLFlowLogger("slow", tracking_uri=proxy.url, save_dir=tmp_path)
    _ = logger.experiment
    proxy.set("slow", delay=2.0)
    assert train(logger, tmp_path) == []
    assert in_mlflow(f"http://127.0.0.1:{server}", str(logger.run_id)) == due(tmp_path)


def test_server_that_comes_late(proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """With on_unreachable="spool" a run begins without the server, which gets all when it comes, parameters too."""
    proxy.set("refuse")
    time.sleep(0.2)
    logger = MLFlowLogger("late", tracking_uri=proxy.url, save_dir=tmp_path, on_unreachable="spool")
    warned = train(logger, tmp_path, lambda: (time.sleep(0.7), proxy.set("pass")), sleep=0.04)
    assert sum("the run goes on" in message for message in warned) == 1
    assert in_mlflow(f"http://127.0.0.1:{server}", str(logger.run_id)) == due(tmp_path)
    assert logger.experiment.get_run(logger.run_id).data.params == {"values": "10"}


def test_server_that_never_comes_and_replay(
    proxy: FaultProxy, server: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run could not send stays beside it, is reported with the command that sends it, and that command does."""
    proxy.set("refuse")
    time.sleep(0.2)
    logger = MLFlowLogger("never", tracking_uri=proxy.url, save_dir=tmp_path, on_unreachable="spool")
    warned = train(logger, tmp_path, sleep=0.0)
    folder = journal_of(tmp_path).parent
    assert [m for m in warned if f"replay {folder}" in m]
    proxy.set("pass")
    time.sleep(0.2)
    assert journal_command(["status", str(folder)]) == 1
    assert journal_command(["replay", str(folder)]) == 0
    assert "complete" in capsys.readouterr().out
    assert journal_command(["replay", str(folder)]) == 0  # once more: nothing is sent twice
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=proxy.url)
    experiment = client.get_experiment_by_name("never")
    (run,) = client.search_runs([experiment.experiment_id])
    assert in_mlflow(f"http://127.0.0.1:{server}", run.info.run_id) == due(tmp_path)
    assert (run.info.status, run.data.params) == ("FINISHED", {"values": "10"})


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_SILENT": "true"}
    command = [sys.executable, str(JOB), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pass", "refuse"])
def test_killed_trainer_and_replay(mode: str, proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """After kill -9 the replay sends what was due and not sent, whether the server was there or not."""
    proxy.set(mode)
    time.sleep(0.2)
    options = [f"tracking_uri={proxy.url}", f"experiment_name=killed-{mode}", "on_unreachable=spool"]
    arguments = [x for option in options for x in ("--option", option)]
    done = start(tmp_path, "mlflow", "--steps", "200", "--sleep", "0.01", "--die-at", "150", *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr
    proxy.set("pass")
    time.sleep(0.2)
    assert journal_command(["replay", str(journal_of(tmp_path).parent)]) == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=proxy.url)
    experiment = client.get_experiment_by_name(f"killed-{mode}")
    (run,) = client.search_runs([experiment.experiment_id])
    wanted = due(tmp_path)
    assert len(wanted["value_0"]) == 150
    assert in_mlflow(f"http://127.0.0.1:{server}", run.info.run_id) == wanted
    assert run.info.status == "KILLED"


def test_killed_trainer_resumed(proxy: FaultProxy, server: int, tmp_path: Path) -> None:
    """A run that was killed and resumed goes on in its MLflow run, with no value lost or there twice."""
    options = ["--option", f"tracking_uri={proxy.url}", "--option", "experiment_name=resumed", "--save-every", "40"]
    done = start(tmp_path, "mlflow", "--steps", "150", "--sleep", "0.01", "--die-at", "110", *options)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = start(tmp_path, "mlflow", "--steps", "150", *options)
    assert done.returncode == 0, done.stderr
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=proxy.url)
    (run,) = client.search_runs([client.get_experiment_by_name("resumed").experiment_id])
    wanted = due(tmp_path)
    assert len(wanted["value_0"]) == 150
    assert in_mlflow(f"http://127.0.0.1:{server}", run.info.run_id) == wanted
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["mlflow", "tensorboard", "wandb"])
def test_resumed_with_another_cadence(kind: str, server: int, tmp_path: Path) -> None:
    """A run that was killed and resumed with another log_every_n_steps loses nothing, and sends nothing twice."""
    uri = f"http://127.0.0.1:{server}"
    options = {"mlflow": [f"tracking_uri={uri}", "experiment_name=cadence"], "wandb": ["offline=1"], "tensorboard": []}
    arguments = [x for option in options[kind] for x in ("--option", option)]
    arguments += ["--steps", "60", "--save-every", "9", "--sleep", "0.02"]
    done = start(tmp_path, kind, *arguments, "--log-every", "2", "--die-at", "35")
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = start(tmp_path, kind, *arguments, "--log-every", "5")
    assert done.returncode == 0, done.stderr
    if kind == "mlflow":
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        (run,) = client.search_runs([client.get_experiment_by_name("cadence").experiment_id])
        found = in_mlflow(uri, run.info.run_id)
    else:
        found = in_wandb(tmp_path) if kind == "wandb" else in_tensorboard(str(journal_of(tmp_path).parent))
    wanted = rounded(due(tmp_path)) if kind == "tensorboard" else due(tmp_path)
    assert len(wanted["value_0"]) > 15
    for name in (name for name in wanted if name.startswith("value_")):
        assert not wanted[name] - found[name]
        assert set(found[name].values()) == {1}


# ------------------------------------------------------------ TensorBoard


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_tensorboard_folder_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files that somebody removes in the middle of a run are written again, whole."""
    monkeypatch.setattr(delivery_module, "FIRST_RETRY_SECONDS", 0.1)
    logger = TensorBoardLogger(tmp_path, sub_dir="events")

    def remove() -> None:
        time.sleep(0.6)
        shutil.move(logger.log_dir, tmp_path / "gone")

    warned = train(logger, tmp_path, remove, sleep=0.03)
    assert sum("logging failed" in message for message in warned) == 1
    found = in_tensorboard(logger.log_dir)
    assert len(found["value_0"]) == STEPS
    assert set(found["value_0"].values()) == {1}


def test_tensorboard_after_a_kill(tmp_path: Path) -> None:
    """After kill -9 the replay completes the event files, and writes nothing twice."""
    done = start(tmp_path, "tensorboard", "--steps", "200", "--sleep", "0.01", "--die-at", "150")
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = journal_of(tmp_path).parent
    assert journal_command(["replay", str(folder)]) == 0
    wanted = due(tmp_path)
    assert len(wanted["value_0"]) == 150
    assert in_tensorboard(str(folder)) == rounded(wanted)


# ------------------------------------------------------------ W&B


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_after_a_kill(tmp_path: Path) -> None:
    """After kill -9 the replay completes the offline run, and writes nothing twice."""
    done = start(tmp_path, "wandb", "--steps", "200", "--sleep", "0.01", "--die-at", "150", "--option", "offline=1")
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = journal_of(tmp_path).parent
    command = [sys.executable, "-m", "lt_core.journal", "replay", str(folder)]
    replayed = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    wanted = {name: counts for name, counts in due(tmp_path).items() if name.startswith("value_")}
    assert len(wanted["value_0"]) == 150
    assert in_wandb(tmp_path) == wanted


# ------------------------------------------------------------ what is shown


@pytest.mark.parametrize("delivery", ["async", "sync"])
@pytest.mark.parametrize("beside", [[], ["csv"]])
def test_pictures_stand_at_the_runs_step(beside: list[str], delivery: str, tmp_path: Path) -> None:
    """What a module shows without naming a step stands where the run is, whichever loggers there are."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Shows(Net):
        def on_train_batch_end(self, *arguments: Any) -> None:
            self.logger.log_image("picture", [torch.full((1, 2, 2), self.global_step / 10)])
            if not beside:
                self.logger.log_metrics({"own": 1.0})

    logger = TensorBoardLogger(tmp_path, delivery=delivery)
    trainer = make_trainer([logger, *beside], str(tmp_path))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.fit(Shows(), batches(4))
    assert sum("CSVLogger cannot show images" in str(w.message) for w in warned) == len(beside)
    reader = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    assert [event.step for event in reader.Images("picture")] == [1, 2, 3, 4]
    assert beside or [event.step for event in reader.Scalars("own")] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")
def test_gradients_stand_at_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms of gradients that W&B shows are those of the step they stand at, though rows are written later."""
    monkeypatch.setenv("WANDB_SILENT", "true")

    class Counting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("value_0", float(batch_idx))
            return self.layer.bias.sum() * batch_idx + 0 * self.layer(batch).sum()

    logger, net = WandbLogger(save_dir=tmp_path, offline=True), Counting()
    logger.watch(net, log_freq=5)
    make_trainer(logger, str(tmp_path)).fit(net, batches(40))
    logger.flush()
    seen = {}
    for row in wandb_rows(tmp_path):
        if "gradients/layer.bias/bins" in row:
            counts, edges = row["gradients/layer.bias/values"], row["gradients/layer.bias/bins"]
            (place,) = [i for i, count in enumerate(counts) if count]
            seen[row["trainer/global_step"]] = (edges[place] + edges[place + 1]) / 2
    assert seen == {step: pytest.approx(step, abs=0.1) for step in range(4, 40, 5)}
