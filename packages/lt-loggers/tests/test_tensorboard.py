"""TensorBoardLogger writes event files that TensorBoard's own reader gives back."""

from __future__ import annotations

import multiprocessing
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lt_loggers.tensorboard as home
from lt_interface import Logger, MisconfigurationException, MissingPackageError, SupportsGraph, SupportsRewind
from lt_interface.registry import loggers
from lt_interface.testing import LoggerConformance
from lt_interface.versions import claim_version
from lt_loggers import TensorBoardLogger

EVERYTHING = {"scalars": 0, "tensors": 0, "images": 0, "graph": 0}


def events(folder: str | Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def scalars(folder: str | Path) -> dict[str, dict[int, float]]:
    """Return every scalar; a step that is there twice is an error."""
    found: dict[str, dict[int, float]] = {}
    reader = events(folder)
    for tag in reader.Tags()["scalars"]:
        points = reader.Scalars(tag)
        found[tag] = {point.step: point.value for point in points}
        assert len(found[tag]) == len(points), f"{tag}: a step twice"
    return found


class TestTensorBoardLogger(LoggerConformance):
    plugin = "tensorboard"

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        assert logger.directory is not None
        return scalars(logger.directory)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.example_input_array: Any = torch.zeros(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.drop(self.norm(self.layer(x)))


def test_found_through_its_entry_point() -> None:
    """The registry gives the public class under its name."""
    assert loggers.get("tensorboard") is TensorBoardLogger


def test_offers_graph_and_rewind(tmp_path: Path) -> None:
    """The logger has the two extra abilities."""
    logger = TensorBoardLogger(tmp_path)
    assert isinstance(logger, SupportsGraph)
    assert isinstance(logger, SupportsRewind)


def test_experiment_is_a_summary_writer(tmp_path: Path) -> None:
    """``experiment`` is torch's own writer, the same at each use, and takes what it takes."""
    from torch.utils.tensorboard import SummaryWriter

    logger = TensorBoardLogger(tmp_path)
    writer = logger.experiment
    assert isinstance(writer, SummaryWriter)
    assert logger.experiment is writer
    writer.add_image("picture", torch.zeros(3, 2, 2), 1)
    writer.add_text("note", "hello", 1)
    logger.finish("success")
    assert events(logger.log_dir).Tags()["images"] == ["picture"]


def test_writer_gets_further_arguments(tmp_path: Path) -> None:
    """Further keyword arguments reach the SummaryWriter."""
    logger = TensorBoardLogger(tmp_path, filename_suffix=".mine", max_queue=3, flush_secs=7)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish("success")
    assert [p for p in Path(logger.log_dir).iterdir() if p.name.endswith(".mine")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "lightning_logs/version_0"),
        ({"name": "exp"}, "exp/version_0"),
        ({"name": ""}, "version_0"),
        ({"name": None}, "version_0"),
        ({"version": 7}, "lightning_logs/version_7"),
        ({"version": "best"}, "lightning_logs/best"),
        ({"version": 2, "sub_dir": "tb"}, "lightning_logs/version_2/tb"),
        ({"version": 2, "sub_dir": "$LT_TEST_SUB/x"}, "lightning_logs/version_2/from_env/x"),
    ],
)
def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: str) -> None:
    """Name, version and sub_dir make the folder of the event files."""
    monkeypatch.setenv("LT_TEST_SUB", "from_env")
    logger = TensorBoardLogger(tmp_path, **options)
    assert logger.log_dir == str(tmp_path / expected)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish("success")
    assert scalars(tmp_path / expected) == {"a": {0: 1.0}}


def test_next_version_after_gaps_and_strangers(tmp_path: Path) -> None:
    """The next number is one above the highest, whatever else lies there."""
    for name in ("version_2", "version_10", "version_x", "other"):
        (tmp_path / "exp" / name).mkdir(parents=True)
    assert TensorBoardLogger(tmp_path, name="exp").version == 11


def _claim(folder: str, gate: Any, answers: Any) -> None:
    gate.wait()
    answers.put(claim_version(Path(folder)))


def test_processes_at_once_get_their_own_versions(tmp_path: Path) -> None:
    """Four processes that start at the same moment claim four folders."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    gate, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_claim, args=(str(tmp_path), gate, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert found == [0, 1, 2, 3]


def test_claim_passes_over_a_folder_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that appears between looking and making is left to its owner."""
    (tmp_path / "version_0").mkdir()
    monkeypatch.setattr("lt_interface.versions.last_version", lambda root: -1)
    assert TensorBoardLogger(tmp_path, name="").version == 1


def test_prefix(tmp_path: Path) -> None:
    """A prefix stands before each name, joined by a hyphen."""
    logger = TensorBoardLogger(tmp_path, prefix="run")
    logger.log_metrics({"loss": 1.0}, 2)
    logger.finish("success")
    assert scalars(logger.log_dir) == {"run-loss": {2: 1.0}}


def test_dict_values_share_a_chart(tmp_path: Path) -> None:
    """A dict of values becomes one chart of several curves."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": {"train": 1.0, "val": torch.tensor(2.0)}}, 3)
    logger.finish("success")
    assert scalars(Path(logger.log_dir) / "loss_train") == {"loss": {3: 1.0}}
    assert scalars(Path(logger.log_dir) / "loss_val") == {"loss": {3: 2.0}}


def test_tensors_and_arrays_are_numbers(tmp_path: Path) -> None:
    """Single-element tensors, arrays, booleans and integers are written as numbers."""
    import numpy as np

    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"t": torch.tensor([2.0]), "n": np.float32(3), "b": True, "i": 4, "huge": 10**400}, 0)
    logger.finish("success")
    found = {name: points[0] for name, points in scalars(logger.log_dir).items()}
    assert found == {"t": 2.0, "n": 3.0, "b": 1.0, "i": 4.0, "huge": float("inf")}


@pytest.mark.parametrize("value", ["0.5", torch.zeros(2), None, object()], ids=["text", "vector", "none", "object"])
def test_refuses_what_is_no_number(tmp_path: Path, value: Any) -> None:
    """A value that is no number is an error that names the metric and what to do."""
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(MisconfigurationException, match=r"log_metrics\('bad'\).*logger\.experiment"):
        logger.log_metrics({"bad": value}, 0)
    logger.finish("failed")


@dataclass
class Settings:
    """Hyper-parameters in a dataclass."""

    depth: int = 2


class Model:
    """Class among hyper-parameters."""


PARAMS = {
    "lr": 0.1,
    "net": {"width": 3, "act": torch.relu, "cls": Model},
    "layers": [1, (2, 3)],
    "settings": Settings(),
    "space": Namespace(x=1),
    "none": None,
    "path": Path("a/b"),
    "scale": torch.tensor(2.0),
}


def test_hparams_file(tmp_path: Path) -> None:
    """hparams.yaml holds plain values in the user's shape and can be read without any class."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams(PARAMS)
    logger.log_hyperparams(Namespace(seed=3))
    logger.finish("success")
    found = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert found == {
        "lr": 0.1,
        "net": {"width": 3, "act": "relu", "cls": "Model"},
        "layers": [1, [2, 3]],
        "settings": {"depth": 2},
        "space": {"x": 1},
        "none": None,
        "path": "a/b",
        "scale": 2.0,
        "seed": 3,
    }
    assert list(Path(logger.log_dir).glob(".hparams*")) == []


def test_hparams_file_is_there_without_any(tmp_path: Path) -> None:
    """A run without hyper-parameters has an empty hparams.yaml."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish("success")
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {}


def hparams_of(folder: str) -> dict[str, Any]:
    """Return what TensorBoard's table of runs gets: the session's flat hyper-parameters."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events(folder).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    fields = HParamsPluginData.FromString(content).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in fields.items()}


def test_hp_metric_by_default(tmp_path: Path) -> None:
    """Hyper-parameters get hp_metric -1 and stand flat in TensorBoard's table."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams(PARAMS)
    logger.finish("success")
    assert scalars(logger.log_dir) == {"hp_metric": {0: -1.0}}
    found = hparams_of(logger.log_dir)
    assert found["net/width"] == 3.0
    assert found["net/act"] == "relu"
    assert found["space/x"] == 1.0
    assert found["none"] == "None"


def test_default_hp_metric_hides_no_value(tmp_path: Path) -> None:
    """Hyper-parameters that are logged again do not write hp_metric a second time."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"hp_metric": 0.5}, 3)
    logger.log_hyperparams({"lr": 0.2})
    logger.finish("success")
    assert scalars(logger.log_dir) == {"hp_metric": {0: -1.0, 3: 0.5}}


def test_hp_metric_switched_off(tmp_path: Path) -> None:
    """Without default_hp_metric only the file is written."""
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish("success")
    assert scalars(logger.log_dir) == {"a": {0: 1.0}}
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.1}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [(0.5, {"hp_metric": {4: 0.5}}), ({"acc": 0.75, "loss": 2.0}, {"acc": {4: 0.75}, "loss": {4: 2.0}})],
)
def test_hparams_with_metrics(tmp_path: Path, metrics: Any, expected: Any) -> None:
    """A number becomes hp_metric, a dict stands as it is, at the step that is given."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1}, metrics, step=4)
    logger.finish("success")
    assert scalars(logger.log_dir) == expected


def test_graph(tmp_path: Path) -> None:
    """log_graph draws the model's graph from its example input and disturbs neither modes, buffers nor random state."""
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    net = Net()
    net.norm.eval()
    before = (net.norm.running_mean.clone(), torch.get_rng_state())  # type: ignore[union-attr,operator]
    logger.log_graph(net)
    logger.finish("success")
    assert "layer" in str(events(logger.log_dir).Graph())
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert torch.equal(net.norm.running_mean, before[0])  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_graph_of_a_given_input(tmp_path: Path) -> None:
    """An input that is given is taken before the model's own example."""
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    net = Net()
    net.example_input_array = None
    logger.log_graph(net, torch.zeros(2, 3))
    logger.finish("success")
    assert "layer" in str(events(logger.log_dir).Graph())


def test_graph_is_drawn_once_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a second fit nor a resumed run draws the graph again."""
    old = TensorBoardLogger(tmp_path, log_graph=True)
    old.log_graph(Net())
    old.log_graph(Net())
    old.finish("interrupted")
    new = TensorBoardLogger(tmp_path, log_graph=True)
    new.rewind(0, 0)
    new.log_graph(Net())
    new.finish("success")
    assert events(new.log_dir).Tags()["graph"] is True
    assert "more than one graph" not in caplog.text


def test_graph_only_on_request(tmp_path: Path) -> None:
    """Without log_graph=True nothing is traced or started."""
    TensorBoardLogger(tmp_path).log_graph(Net())
    assert list(tmp_path.iterdir()) == []


def test_graph_without_input_warns(tmp_path: Path) -> None:
    """A model without an example input costs a warning that names the attribute."""
    net = Net()
    net.example_input_array = None
    with pytest.warns(UserWarning, match="example_input_array"):
        TensorBoardLogger(tmp_path, log_graph=True).log_graph(net)


def test_untraceable_graph_warns(tmp_path: Path) -> None:
    """A model that cannot be traced costs a warning, and the run logs on."""
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    net = Net()
    with pytest.warns(UserWarning, match="could not be traced"):
        logger.log_graph(net, torch.zeros(2, 99))
    assert net.training
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish("success")
    assert scalars(logger.log_dir) == {"a": {0: 1.0}}


def test_rewind_sends_nothing_twice(tmp_path: Path) -> None:
    """After a kill that lost part of the values, sending the whole history fills the gap and repeats nothing."""
    old = TensorBoardLogger(tmp_path)
    old.log_hyperparams({"lr": 0.1})
    for step in range(8):
        old.log_metrics({"loss": float(step)}, step)
        if step < 4:
            old.log_metrics({"late": float(step)}, step)
    old.experiment.add_image("picture", torch.zeros(3, 2, 2), 2)
    old.finish("interrupted")
    new = TensorBoardLogger(tmp_path)
    assert new.rewind(5, 0) is True
    new.log_hyperparams({"lr": 0.1})
    for step in range(10):
        new.log_metrics({"loss": step + (100.0 if step > 5 else 0.0), "late": float(step)}, step)
    new.finish("success")
    assert scalars(new.log_dir) == {
        "hp_metric": {0: -1.0},
        "loss": {step: step + (100.0 if step > 5 else 0.0) for step in range(10)},
        "late": {step: float(step) for step in range(10)},
    }
    assert events(new.log_dir).Tags()["images"] == ["picture"]


def test_rewind_purges_charts_of_several_curves(tmp_path: Path) -> None:
    """What a dict of values wrote after the checkpoint is gone too."""
    old = TensorBoardLogger(tmp_path)
    for step in range(5):
        old.log_metrics({"loss": {"train": float(step)}}, step)
    old.finish("interrupted")
    new = TensorBoardLogger(tmp_path)
    new.rewind(2, 0)
    new.log_metrics({"loss": {"train": 50.0}}, 3)
    new.finish("success")
    assert scalars(Path(new.log_dir) / "loss_train") == {"loss": {0: 0.0, 1: 1.0, 2: 2.0, 3: 50.0}}


def test_rewind_twice(tmp_path: Path) -> None:
    """A run that is killed and resumed twice shows each step once, with its last value."""
    TensorBoardLogger(tmp_path).finish("success")
    for start, stop, run in ((0, 6, 0.0), (3, 5, 10.0), (2, 7, 20.0)):
        logger = TensorBoardLogger(tmp_path, version=0)
        if start:
            logger.rewind(start - 1, 0)
        for step in range(start, stop):
            logger.log_metrics({"loss": step + run}, step)
        logger.finish("interrupted")
    assert scalars(logger.log_dir)["loss"] == {0: 0.0, 1: 1.0, 2: 22.0, 3: 23.0, 4: 24.0, 5: 25.0, 6: 26.0}


def test_rewind_survives_a_torn_file(tmp_path: Path) -> None:
    """A record that was cut off by the kill is passed over."""
    old = TensorBoardLogger(tmp_path)
    for step in range(5):
        old.log_metrics({"loss": float(step)}, step)
    old.finish("interrupted")
    (file,) = Path(old.log_dir).glob("events*")
    file.write_bytes(file.read_bytes()[:-7])
    new = TensorBoardLogger(tmp_path)
    new.rewind(4, 0)
    for step in range(6):
        new.log_metrics({"loss": float(step)}, step)
    new.finish("success")
    assert scalars(new.log_dir)["loss"] == {step: float(step) for step in range(6)}


@pytest.mark.parametrize(
    ("installed", "command"),
    [({"torch"}, r"pip install 'lt-loggers\[tensorboard\]'"), (set(), r"pip install 'lt-loggers\[tensorboardx\]'")],
)
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str], command: str) -> None:
    """Without a package that writes event files, construction fails with the exact pip command."""
    monkeypatch.setattr(home, "find_spec", lambda name: object() if name in installed else None)
    with pytest.raises(MissingPackageError, match=command) as caught:
        TensorBoardLogger(tmp_path)
    assert isinstance(caught.value, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("installed", "package"),
    [
        ({"torch", "tensorboard", "tensorboardX"}, "torch.utils.tensorboard"),
        ({"torch", "tensorboardX"}, "tensorboardX"),
        ({"tensorboard", "tensorboardX"}, "tensorboardX"),
    ],
)
def test_choice_of_package(monkeypatch: pytest.MonkeyPatch, installed: set[str], package: str) -> None:
    """Torch's writer is taken where it works, else tensorboardX."""
    monkeypatch.setattr(home, "find_spec", lambda name: object() if name in installed else None)
    assert home._writer_package() == package


def test_refuses_a_remote_folder() -> None:
    """An address instead of a folder is refused at construction."""
    with pytest.raises(MisconfigurationException, match="s3://bucket"):
        TensorBoardLogger("s3://bucket/x")
