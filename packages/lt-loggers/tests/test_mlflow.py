"""MLFlowLogger writes to MLflow's stores what MLflow's own client gives back."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_interface import ConfigError, Logger, MisconfigurationException, Record
from lt_interface.registry import loggers
from lt_interface.testing import LoggerConformance
from lt_loggers import MLFlowLogger
from lt_loggers.mlflow.client import without_secret
from lt_loggers.mlflow.names import accepted

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables, so that not every test makes them."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(template, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")


def points(logger: Logger) -> dict[str, dict[int, float]]:
    """Return every value of a run; a step that is there twice is an error."""
    client, run_id = logger.experiment, logger.run_id  # type: ignore[attr-defined]
    found: dict[str, dict[int, float]] = {}
    for name in client.get_run(run_id).data.metrics:
        history = client.get_metric_history(run_id, name)
        found[name] = {m.step: _infinite(m.value) for m in history}
        assert len(found[name]) == len(history), f"{name}: a step twice"
    return found


def _infinite(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) > 1.7e308 else value


@pytest.mark.filterwarnings("ignore:.*first value of a parameter")  # two sets of them, on purpose
class TestMLFlowLogger(LoggerConformance):
    plugin = "mlflow"

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        return points(logger)

    @pytest.fixture(autouse=True)
    def _silent(self, silent_port: int) -> None:
        self.silent_port = silent_port

    def make_unreachable(self, tmp_path: Path) -> Logger:
        uri = f"http://127.0.0.1:{self.silent_port}"
        return MLFlowLogger(tracking_uri=uri, save_dir=tmp_path, on_unreachable="spool")


def records(first: int, last: int, names: int = 2, start: float = 1_700_000_000.0) -> list[Record]:
    return [
        Record(i, "train", "step", i, start + i, {f"m{n}": i + n / 10 for n in range(names)})
        for i in range(first, last)
    ]


def expected(last: int, names: int = 2) -> dict[str, dict[int, float]]:
    return {f"m{n}": {i: i + n / 10 for i in range(last)} for n in range(names)}


def test_found_through_its_entry_point() -> None:
    """The registry gives the public class under its name."""
    assert loggers.get("mlflow") is MLFlowLogger


def test_import_brings_no_tracker() -> None:
    """Importing the module loads neither mlflow nor torch nor numpy."""
    code = "import sys, lt_loggers.mlflow; print(sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_resend_adds_only_what_is_missing(tmp_path: Path) -> None:
    """Records that come again, with the same wall time, are asked for first and never there twice."""
    logger = MLFlowLogger(save_dir=tmp_path)
    logger.log_records(records(0, 5))
    logger.log_records(records(0, 5), unsure=True)
    logger.log_records(records(3, 9), unsure=True)
    assert points(logger) == expected(9)


def test_replay_goes_on_in_the_same_run(tmp_path: Path) -> None:
    """A logger that is made again from its JSON state finds its run, and can end it."""
    logger = MLFlowLogger("exp", save_dir=tmp_path, tags={"a": "b"})
    logger.log_records(records(0, 3))
    state = json.loads(json.dumps(logger.replay_state()))
    again = MLFlowLogger.from_replay_state(state)
    again.log_records(records(0, 6), unsure=True)
    again.finish("interrupted")
    assert (again.run_id, again.version, again.directory) == (logger.run_id, logger.version, logger.directory)
    assert points(logger) == expected(6)
    assert logger.experiment.get_run(logger.run_id).info.status == "KILLED"


@pytest.mark.parametrize(("status", "kept"), [("success", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")])
def test_status_of_the_end(tmp_path: Path, status: str, kept: str) -> None:
    """The run ends with MLflow's word for how it ended."""
    logger = MLFlowLogger(save_dir=tmp_path)
    logger.log_metrics({"x": 1.0}, 0)
    logger.finish(status)
    assert logger.experiment.get_run(logger.run_id).info.status == kept


def test_file_store(tmp_path: Path) -> None:
    """A folder is a store, too, and the run's own files lie beside it."""
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'runs'}", save_dir=tmp_path / "runs")
    logger.log_records(records(0, 4))
    logger.log_records(records(2, 6), unsure=True)
    assert points(logger) == expected(6)
    assert not str(logger.directory).startswith(str(tmp_path / "runs") + os.sep)


def test_parameters_of_any_number_and_length(tmp_path: Path) -> None:
    """More than a hundred parameters, long values and odd keys are all kept; a changed one is reported, not fatal."""
    logger = MLFlowLogger(save_dir=tmp_path)
    params = {f"p{i}": i for i in range(250)}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        logger.log_hyperparams({**params, "long": "x" * 9000, "longer": "y" * 9001, "net": {"act (a)": "relu"}})
        logger.log_hyperparams({"net": {"act (a)": "relu"}})
    assert [str(w.message).split(": ", 1)[1] for w in warned if w.category is UserWarning] == [
        "MLflow takes no name 'net/act (a)'; it is logged as 'net/act _u28_a_u29_', and each other name of that kind "
        "alike.",
        "parameter 'long' has 9000 letters; the first 6000 are kept, and of each other that is longer alike.",
    ]
    logger.log_hyperparams({"long": "x" * 9000})
    with pytest.warns(UserWarning, match="not new: p1, p2"):
        logger.log_hyperparams({"p1": 17, "p2": 7, "more": 1})
    kept = logger.experiment.get_run(logger.run_id).data.params
    assert {key: kept[key] for key in params} == {key: str(value) for key, value in params.items()}
    assert (kept["long"], kept["more"], kept["p1"]) == ("x" * 6000, "1", "1")
    assert kept[accepted("net/act (a)")] == "relu"


def original(text: str) -> str:
    """Return the name that an accepted one was made of: that there is one shows that no two become the same."""
    return "" if text == "_u_" else re.sub(r"_u([0-9a-f]+)_", lambda match: chr(int(match[1], 16)), text)


@given(st.lists(st.text(min_size=1, max_size=30), unique=True, max_size=8))
def test_names_are_mapped_one_to_one(names: list[str]) -> None:
    """Every name becomes one that MLflow takes, no two the same, and can be read back."""
    from mlflow.utils.validation import _validate_metric_name

    made = [accepted(name) for name in names]
    assert len(set(made)) == len(names)
    for name, text in zip(names, made, strict=True):
        _validate_metric_name(text)
        assert original(text) == name


@given(st.text(alphabet="_u2f5/.ab", min_size=1, max_size=14))
def test_names_like_escapes(name: str) -> None:
    """A name that looks like an escape is escaped, and comes back."""
    assert original(accepted(name)) == name


def test_no_two_names_become_one() -> None:
    """Names of the letters that escapes are made of stay apart, and are taken for names by MLflow."""
    from mlflow.utils.validation import _validate_metric_name

    names = ["".join(letters) for n in range(1, 7) for letters in itertools.product("_ua\n/.", repeat=n)]
    made = [accepted(name) for name in names]
    assert len(set(made)) == len(names)
    for name in made[::17]:
        _validate_metric_name(name)


def test_strange_names_are_told_once(tmp_path: Path) -> None:
    """Metrics that MLflow would refuse are logged under other names, with one warning for all of them."""
    logger = MLFlowLogger(save_dir=tmp_path)
    with pytest.warns(
        UserWarning, match="MLflow takes no name 'acc@1'.*and each other name of that kind alike"
    ) as told:
        logger.log_metrics({f"acc@{top}": 0 for top in range(1, 17)}, 0)
    logger.log_metrics({"val@5": 0}, 0)  # a further warning would be an error
    assert len(told) == 1
    assert points(logger).keys() == {accepted(name) for name in [*(f"acc@{top}" for top in range(1, 17)), "val@5"]}
    logger = MLFlowLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match="MLflow takes no name 'acc@5'"):
        logger.log_metrics({"acc@5": 0}, 0)
    for step in (1, 2):
        logger.log_metrics({"acc@5": step}, step)
    assert points(logger) == {accepted("acc@5"): {0: 0.0, 1: 1.0, 2: 2.0}}


@pytest.mark.parametrize("value", ["0.5", np.zeros(2), None, object()], ids=["text", "vector", "none", "object"])
def test_refuses_what_is_no_number(tmp_path: Path, value: Any) -> None:
    """A value that is no number is an error that names the metric, its type and what to do."""
    with pytest.raises(MisconfigurationException, match=rf"'bad'.*Got {type(value).__name__}.*log_image"):
        MLFlowLogger(save_dir=tmp_path).log_metrics({"bad": value}, 0)


def test_run_name_tags_and_nested_runs(tmp_path: Path) -> None:
    """Name, description, tags and the parent run are MLflow's own."""
    outer = MLFlowLogger(save_dir=tmp_path, run_name="outer")
    inner = MLFlowLogger(
        save_dir=tmp_path, run_name="inner", nested_run_id=outer.run_id, tags={"mlflow.note.content": "why", "n": 1}
    )
    tags = inner.experiment.get_run(inner.run_id).data.tags
    assert (tags["mlflow.runName"], tags["mlflow.parentRunId"]) == ("inner", outer.run_id)
    assert (tags["mlflow.note.content"], tags["n"], tags["mlflow.source.type"]) == ("why", "1", "LOCAL")


def test_joins_a_run_by_its_id(tmp_path: Path) -> None:
    """With run_id a logger goes on in an earlier run; one that does not exist is one clear error."""
    first = MLFlowLogger(save_dir=tmp_path)
    first.log_metrics({"x": 1.0}, 0)
    first.finish("success")
    second = MLFlowLogger(save_dir=tmp_path, run_id=first.run_id)
    assert second.experiment.get_run(first.run_id).info.status == "RUNNING"
    second.log_metrics({"x": 2.0}, 1)
    assert points(first) == {"x": {0: 1.0, 1: 2.0}}
    with pytest.raises(ConfigError, match=r"run_id='abc'.*must exist"):
        _ = MLFlowLogger(save_dir=tmp_path, run_id="abc").experiment


def test_users_own_mlflow_is_left_alone(tmp_path: Path) -> None:
    """Neither MLflow's active run nor its tracking URI nor the environment change."""
    import mlflow

    before = (mlflow.get_tracking_uri(), dict(os.environ))
    logger = MLFlowLogger(save_dir=tmp_path)
    logger.log_metrics({"x": 1.0}, 0)
    assert mlflow.active_run() is None
    assert (mlflow.get_tracking_uri(), dict(os.environ)) == before


class Saved:
    """Checkpoint callback that saved one file."""

    save_top_k, monitor, mode = 1, "loss", "min"

    def __init__(self, path: Path) -> None:
        self.best_model_path = self.last_model_path = str(path)
        self.best_k_models = {str(path): 0.5}
        self.best_model_score = self.current_score = 0.5


@pytest.mark.parametrize("log_model", ["all", True])
def test_checkpoints_are_artifacts(tmp_path: Path, log_model: Any) -> None:
    """A checkpoint is kept with its aliases, also if it is removed right after the call that saved it."""
    path = tmp_path / "epoch=1-step=20.ckpt"
    path.write_bytes(b"weights")
    logger = MLFlowLogger(save_dir=tmp_path / "s", log_model=log_model)
    logger.after_save_checkpoint(Saved(path))
    if log_model == "all":
        path.unlink()
    logger.finish("success")
    folder = Path(logger.experiment.download_artifacts(logger.run_id, "checkpoints/epoch_1-step_20"))
    kept = [p for p in folder.iterdir() if p.suffix == ".ckpt"]
    assert [p.read_bytes() for p in kept] == [b"weights"]
    assert {"best", "last", "step-20"} <= set(json.loads((folder / "aliases.txt").read_text()))
    assert not list(Path(str(logger.directory)).glob(".staged*/*"))


def test_aliases_move(tmp_path: Path) -> None:
    """The newest checkpoint takes "latest", "best" and "last" from the one before; the step's alias stays."""
    logger = MLFlowLogger(save_dir=tmp_path / "s", log_model="all")
    for step in (1, 2, 3):
        path = tmp_path / f"step={step}.ckpt"
        path.write_bytes(b"weights" * step)
        logger.after_save_checkpoint(Saved(path))
    logger.finish("success")
    folder = Path(logger.experiment.download_artifacts(logger.run_id, "checkpoints"))
    held = {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.rglob("aliases.txt"))}
    assert held == {"step_1": ["step-1"], "step_2": ["step-2"], "step_3": ["latest", "best", "last", "step-3"]}


def test_infinities_stand_as_text(tmp_path: Path) -> None:
    """The first infinite value of each metric is kept as text in a tag too, with one warning."""
    logger = MLFlowLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match="'a' was inf at step 3"):
        logger.log_metrics({"a": math.inf, "b": math.nan}, 3)
    logger.log_metrics({"a": math.inf, "c": -math.inf}, 4)  # another warning would be an error
    tags = logger.experiment.get_run(logger.run_id).data.tags
    assert {key: value for key, value in tags.items() if key.startswith("infinite")} == {
        "infinite.a": "inf at step 3",
        "infinite.c": "-inf at step 4",
    }


def test_refused_value_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of values that were logged directly one that the store refuses is reported, and the others are there, once."""
    from mlflow.exceptions import MlflowException

    logger, calls = MLFlowLogger(save_dir=tmp_path), []  # type: ignore[var-annotated]
    client = logger.experiment
    taken = client.log_batch

    def picky(run_id: str, metrics: Any = (), **others: Any) -> None:
        if any(metric.step == 3 for metric in metrics):
            raise MlflowException("not step 3", 1000)  # INVALID_PARAMETER_VALUE
        taken(run_id, metrics=metrics, **others)

    monkeypatch.setattr(client, "log_batch", picky)
    logger._feed = Namespace(later=lambda call, what: calls.append(call), step=0, progressed=lambda: None)
    for step in range(6):
        logger.log_metrics({"own": float(step)}, step)
    (call,) = calls
    with pytest.raises(ValueError, match="not step 3"):
        call()
    logger.log_metrics({"own": 6.0}, 6)
    calls[1]()
    history = client.get_metric_history(logger.run_id, "own")
    assert sorted(m.step for m in history) == [0, 1, 2, 4, 5, 6]


def test_aliases_move_over_a_resume(tmp_path: Path) -> None:
    """A checkpoint of a run that goes on in another process takes its aliases from the earlier one's."""
    path = tmp_path / "step=1.ckpt"
    path.write_bytes(b"one")
    old = MLFlowLogger(save_dir=tmp_path / "s", log_model="all")
    old.after_save_checkpoint(Saved(path))
    old.finish("interrupted")
    path = tmp_path / "step=2.ckpt"
    path.write_bytes(b"two!")
    new = MLFlowLogger(save_dir=tmp_path / "s", log_model="all")
    new.join(str(old.version))
    new.after_save_checkpoint(Saved(path))
    new.finish("success")
    folder = Path(new.experiment.download_artifacts(new.run_id, "checkpoints"))
    held = {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.rglob("aliases.txt"))}
    assert held == {"step_1": ["step-1"], "step_2": ["latest", "best", "last", "step-2"]}


def test_deleted_run_is_no_fault_of_the_values(tmp_path: Path) -> None:
    """Records for a run that somebody deleted are no refusal: once it is restored they are taken."""
    logger = MLFlowLogger(save_dir=tmp_path)
    client = logger.experiment
    client.delete_run(logger.run_id)
    with pytest.raises(ConnectionError, match=r"was deleted on the server\. Restore it"):
        logger.log_records(records(0, 2))
    client.restore_run(logger.run_id)
    logger.log_records(records(0, 2), unsure=True)
    assert points(logger) == expected(2)


def test_settings_are_the_thread_s(tmp_path: Path) -> None:
    """While one call of ours is out, another thread finds MLflow's own settings, and nothing in the environment."""
    from mlflow import environment_variables

    from lt_loggers.mlflow.client import calling

    retries = environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES
    before, seen = retries.get(), []
    with calling():
        inside = retries.get()
        thread = threading.Thread(target=lambda: seen.append(retries.get()))
        thread.start()
        thread.join()
        assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert (inside, seen, retries.get()) == (0, [before], before)
    assert before > 0


def test_mlflow_shows_no_bars_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that our calls send and fetch have no bar, which would break the trainer's; the user's own calls have."""
    for name in ("tqdm", "tqdm.auto"):  # it is not always installed with MLflow
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(tqdm=lambda **_: "a bar"))
    from mlflow.utils.file_utils import ArtifactProgressBar

    from lt_loggers.mlflow.client import calling

    with calling():
        assert ArtifactProgressBar.files("Downloading", 3).pbar is None
        assert ArtifactProgressBar.chunks(1 << 40, "Uploading", 1).pbar is None
    assert ArtifactProgressBar.files("Downloading", 3).pbar is not None


def test_unwritable_places(tmp_path: Path) -> None:
    """A database or a folder that cannot be made is one clear error."""
    (tmp_path / "file").write_text("in the way")
    for options in ({"tracking_uri": f"sqlite:///{tmp_path}/file/x.db"}, {"save_dir": tmp_path / "file" / "x"}):
        with pytest.raises(ConfigError, match=r"MLFlowLogger\(.*must be writable.*Give another"):
            _ = MLFlowLogger(**options).experiment


def test_media_are_artifacts(tmp_path: Path) -> None:
    """Pictures, figures, text, tables, histograms and sounds are found among the run's artifacts."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    logger = MLFlowLogger(save_dir=tmp_path)
    logger.log_image("pic", [np.zeros((4, 4, 3), np.uint8)], step=3)
    logger.log_figure("fig", figure, step=3)
    logger.log_text("note", "hello", step=3)
    logger.log_table("rows", ["a"], [[1]], step=3)
    logger.log_histogram("h", np.arange(10.0), step=3)
    logger.log_audio("../../beep", [np.zeros(100)], step=3, sample_rate=[8000])
    names = {a.path for a in logger.experiment.list_artifacts(logger.run_id)}
    assert {"images", "figures", "text", "tables", "histograms", "audio"} <= names
    assert [a.path for a in logger.experiment.list_artifacts(logger.run_id, "audio")] == ["audio/beep"]


# ------------------------------------------------------------ servers that are away


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("how", ["refused", "silent", "no such host"])
def test_wrong_uri_is_an_error_within_five_seconds(tmp_path: Path, silent_port: int, how: str) -> None:
    """A server that does not answer is one clear error, soon, without the password that its address holds."""
    place = {"refused": "127.0.0.1:9", "silent": f"127.0.0.1:{silent_port}", "no such host": "nowhere.invalid:80"}[how]
    logger = MLFlowLogger(tracking_uri=f"http://me:secret@{place}", save_dir=tmp_path)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r'must answer.*on_unreachable="spool"') as caught:
        _ = logger.experiment
    assert time.monotonic() - begun < 5
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/x", "http://host:5000/x"),
        ("http://u:p@host:5000/x", "http://***@host:5000/x"),
        ("https://u:p@ss@host/a@b", "https://***@host/a@b"),
        ("http://u:p/ss@host", "http://***@host"),
        ("http://host/x?token=abc&y=1", "http://host/x?token=***&y=1"),
        ("http://u:p@host/x?api_key=abc", "http://***@host/x?api_key=***"),
        ("sqlite:////a/b@c/d.db", "sqlite:////a/b@c/d.db"),
    ],
)
def test_addresses_without_their_secrets(uri: str, shown: str) -> None:
    """User, password and token of an address are left out of what is written, and nothing else of it."""
    assert without_secret(uri) == shown


def test_unknown_scheme(tmp_path: Path) -> None:
    """An address of no known kind is one clear error that lists the kinds."""
    with pytest.raises(MisconfigurationException, match=r"htp://x.*this kind of store.*sqlite:///path"):
        _ = MLFlowLogger(tracking_uri="htp://x", save_dir=tmp_path).experiment


def test_spools_when_told_so(tmp_path: Path) -> None:
    """With on_unreachable="spool" the identity is settled without the server, and never holds a secret."""
    logger = MLFlowLogger("e", tracking_uri="http://u:hush@127.0.0.1:9", save_dir=tmp_path, on_unreachable="spool")
    with pytest.warns(UserWarning, match="the run goes on"):
        before = (logger.name, logger.version, logger.directory)
    assert before[0] == "e"
    with pytest.raises(ConnectionError):
        logger.log_records(records(0, 1))
    assert (logger.name, logger.version, logger.directory) == before
    with pytest.warns(UserWarning, match="end could not be sent"):
        logger.finish("success")
    assert "hush" not in json.dumps(logger.replay_state())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hush" in p.read_bytes()]


def test_system_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine does is logged under system/ until the run ends."""
    pytest.importorskip("psutil")
    monkeypatch.setattr("lt_loggers.mlflow.system.SECONDS", 0.05)
    logger = MLFlowLogger(save_dir=tmp_path, log_system_metrics=True)
    client, end = logger.experiment, time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in client.get_run(logger.run_id).data.metrics:
        assert time.monotonic() < end
        time.sleep(0.05)
    logger.finish("success")
    while any(thread.name == "lt-system-metrics" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "system/system_memory_usage_megabytes" in points(logger)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"run_id": 5}, r"MLFlowLogger\(run_id=5\): it must be text. Got int"),
    ({"tracking_uri": Path("x")}, r"tracking_uri=.*it must be text"),
    ({"tags": ["a"]}, r"tags=\['a'\]\): it must be a dict"),
    ({"experiment_name": ""}, r"experiment_name=''\): it must have a name"),
    ({"flush_timeout": "x"}, r"flush_timeout='x'\): it must be a number of seconds. Got str"),
    ({"flush_timeout": -1}, r"flush_timeout=-1\).*not below 0"),
    ({"log_model": 1}, r"log_model=1\): this must be one of False, True, 'all'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    """An argument of the wrong kind is one clear error when the logger is made."""
    with pytest.raises(ConfigError, match=message):
        MLFlowLogger(**options)


def test_other_ranks_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a further process nothing is made or sent, and the experiment answers anything."""
    monkeypatch.setenv("RANK", "3")
    logger = MLFlowLogger(save_dir=tmp_path / "none", log_model="all")
    logger.experiment.log_metric("x", 1)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_records(records(0, 2))
    logger.log_hyperparams({"a": 1})
    logger.log_text("a", "b")
    logger.finish("success")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("uri", ["file:{}/x", "file://{}/x", "{}/x", "sqlite:///{}/x.db", None])
def test_a_store_that_cannot_be_written_is_one_clear_error(
    uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder or a database where nothing can be made is named before anything is logged, with what to change."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" if uri is None else tmp_path / "mine"
    logger = MLFlowLogger(tracking_uri=uri and uri.format(tmp_path / "file"), save_dir=folder / "s")
    with pytest.raises(ConfigError, match=r"MLFlowLogger\(tracking_uri=.*folder must be writable.*Give another path"):
        _ = logger.experiment
