"""The profilers of this package: what they measure, write and refuse."""

from __future__ import annotations

import doctest
import json
import pickle
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Net, fit, loader
from quiet import SILENT
from torch.profiler import ProfilerAction, schedule

from lt_core import Callback, LightningDataModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lt_interface import ConfigError
from lt_interface.testing import ProfilerConformance

WORDS: dict[type, str] = {SimpleProfiler: "simple", AdvancedProfiler: "advanced", PyTorchProfiler: "pytorch"}
KINDS = list(WORDS)


class TestSimple(ProfilerConformance):
    plugin = "simple"

    def read(self, profiler: Any) -> dict[str, int]:
        return {name: len(seconds) for name, seconds in profiler.recorded_durations.items()}


class TestAdvanced(TestSimple):
    plugin = "advanced"


class TestPyTorch(TestSimple):
    plugin = "pytorch"

    def make(self) -> Any:
        return PyTorchProfiler(export_to_chrome=False)


@pytest.mark.parametrize(
    "module",
    [
        "profilers.base",
        "profilers.simple",
        "profilers.advanced",
        "profilers.pytorch",
        "model.throughput",
        "callbacks.device_stats_monitor",
        "callbacks.throughput_monitor",
    ],
)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples in the documentation of profilers and monitors print what they say."""
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(import_module(f"lt_core.{module}")) == (0, pytest.approx(8, abs=4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_profiler_by_name_is_that_class(kind: type) -> None:
    """Each name gives an own profiler, and the old True means the simple one."""
    assert type(Trainer(**SILENT, max_epochs=1, profiler=WORDS[kind]).profiler) is kind
    with pytest.warns(FutureWarning, match="profiler='simple'"):
        assert type(Trainer(**SILENT, max_epochs=1, profiler=True).profiler) is SimpleProfiler


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(4)

    def val_dataloader(self) -> Any:
        return loader(2)

    test_dataloader = predict_dataloader = val_dataloader


class Everything(Net):
    """Module that overrides what a trainer calls by name."""

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    test_step = Net.validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch)


def test_every_part_of_a_fit_is_measured(tmp_path: Path) -> None:
    """Setup, loaders, epochs, batches, hooks, logging, saves and the wait for loggers are actions of a fit."""
    profiler = SimpleProfiler()
    flags = {"logger": True, "log_every_n_steps": 2, "gradient_clip_val": 1.0, "enable_checkpointing": True}
    trainer = Trainer(**SILENT, max_epochs=1, profiler=profiler, default_root_dir=tmp_path, **flags)
    trainer.fit(Everything(logs=1), datamodule=Data())
    counts = {name: len(seconds) for name, seconds in profiler.recorded_durations.items()}
    module, data = "[LightningModule]Everything.", "[LightningDataModule]Data."
    for name in ("[Trainer]setup", "setup_train_dataloader", "setup_val_dataloader", "run_training_epoch"):
        assert counts[name] == 1
    for name in (module + "configure_optimizers", data + "train_dataloader", "save_checkpoint"):
        assert counts[name] == 1
    for name in ("prepare_data", "on_save_checkpoint", "configure_callbacks"):
        assert counts[module + name] == 1
    assert counts["run_training_batch"] == counts[module + "optimizer_step"] == 4
    assert counts[module + "configure_gradient_clipping"] == counts[module + "log"] == 4
    assert counts[module + "lr_scheduler_step"] == counts["[Trainer]flush_loggers"] == 1
    assert counts["run_validation"] == 2  # one is the sanity check
    assert counts["[_EvaluationLoop].val_next"] == 6
    assert counts["[Trainer]log"] >= 2
    assert not profiler.current_actions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_is_measured(kind: type, stage: str, tmp_path: Path) -> None:
    """Validation, test and prediction are each measured as a run of their own."""
    profiler = kind(dirpath=tmp_path)
    trainer = Trainer(**SILENT, max_epochs=1, profiler=profiler, logger=False)
    getattr(trainer, stage)(Everything(), datamodule=Data())
    step = {"validate": "validation_step"}.get(stage, f"{stage}_step")
    assert len(profiler.recorded_durations[f"[Strategy]SingleDeviceStrategy.{step}"]) == 2
    assert any(name.endswith("_next") for name in profiler.recorded_durations)
    assert json.loads((tmp_path / f"{stage}-{WORDS[kind]}-0.json").read_text())["stage"] == stage


@pytest.mark.parametrize("kind", KINDS)
def test_a_profiler_travels(kind: type, tmp_path: Path) -> None:
    """A profiler that measured a run can be pickled, and begins anew."""
    profiler = kind(dirpath=tmp_path)
    profiler.setup("fit", 0, None)
    with profiler.profile("run_training_epoch"), profiler.profile("step"):
        pass
    profiler.teardown("fit")
    again = pickle.loads(pickle.dumps(profiler))
    assert (again.dirpath, dict(again.recorded_durations)) == (profiler.dirpath, {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_fit_is_profiled_and_ends_alike(kind: type, tmp_path: Path) -> None:
    """A run that was cut in mid-epoch and resumed under a profiler ends at the weights of one that was not."""
    ends = []
    for folder, cut in ((tmp_path / "whole", False), (tmp_path / "cut", True)):
        torch.manual_seed(1)
        module = Net()
        saves = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=3, save_top_k=0)
        for path in (None, folder / "last.ckpt") if cut else (None,):
            flags = {"callbacks": [saves], "enable_checkpointing": True, "max_steps": 3 if cut and path is None else -1}
            trainer = Trainer(
                **SILENT, max_epochs=2, logger=False, profiler=kind(dirpath=folder), limit_val_batches=0, **flags
            )
            trainer.fit(module, loader(4, shuffle=True), ckpt_path=path)
        ends.append(module.layer.weight.detach().clone())
    assert torch.equal(*ends)
    reports = (tmp_path / "cut" / f"fit-{WORDS[kind]}-0.txt").read_text(encoding="utf-8")
    assert reports.count("Verdict: ") == 2


def test_the_report_is_printed_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a folder and a name the report goes to the screen and nothing is written; short without extended."""
    fit(tmp_path, Net(), loader(2), SimpleProfiler(extended=False))
    shown = capsys.readouterr().out
    assert "run_training_batch" in shown
    assert "Verdict: " in shown
    assert "Calls" not in shown
    assert not list(tmp_path.iterdir())


def test_a_filename_alone_goes_to_the_root_folder(tmp_path: Path) -> None:
    """With a name and no folder the report lies in the trainer's root folder."""
    fit(tmp_path, Net(), loader(2), SimpleProfiler(filename="perf"))
    assert {path.name for path in tmp_path.iterdir()} == {"fit-perf-0.txt", "fit-perf-0.json"}


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the report cannot be written, it is printed with a warning."""
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the report was not written"):
        fit(tmp_path, Net(), loader(2), SimpleProfiler(dirpath=tmp_path / "file"))
    assert "Verdict: " in capsys.readouterr().out


def run_in_thread(call: Any) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_disturbs_nothing(kind: type) -> None:
    """While an action is open, one of the same name in another thread is left out."""
    profiler = kind()
    profiler.setup("fit", 0, None)
    with profiler.profile("save"):
        run_in_thread(lambda: profiler.start("save"))
        run_in_thread(lambda: profiler.stop("save"))
    profiler.describe()
    profiler.teardown("fit")
    assert len(profiler.recorded_durations["save"]) == 1


def test_what_comes_after_the_run_is_no_part_of_it(tmp_path: Path) -> None:
    """A checkpoint that is saved after a fit leaves its verdict as it is."""
    trainer = fit(tmp_path, Net(), loader(2))
    before = trainer.profiler.verdict()
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert trainer.profiler.verdict() == before


def test_actions_may_overlap_and_threads_are_left_out() -> None:
    """An action may end after one that began before it; what other threads do is not the loop's time."""
    profiler = SimpleProfiler()
    profiler.start("a")
    profiler.start("b")
    profiler.stop("a")
    assert list(profiler.current_actions) == ["b"]
    profiler.stop("b")
    run_in_thread(lambda: profiler.profile("c").__enter__())
    assert {name: len(each) for name, each in profiler.recorded_durations.items()} == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="must have begun"):
        profiler.stop("a")


def test_a_users_own_action_is_measured(tmp_path: Path) -> None:
    """A module may measure a part of its own through trainer.profiler in the step; without a profiler it runs, too."""

    class Own(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with self.trainer.profiler.profile("mine"):
                return super().training_step(batch, batch_idx)

    trainer = fit(tmp_path, Own(), loader(3))
    assert len(trainer.profiler.recorded_durations["mine"]) == 3
    assert trainer.profiler.verdict()["phases"]["computing"]["calls"] == 3
    bare = Trainer(**SILENT, logger=False, enable_checkpointing=False, max_epochs=1, limit_val_batches=0)
    bare.fit(Own(), loader(3))
    assert bare.global_step == 3


def test_advanced_lists_functions(tmp_path: Path) -> None:
    """Each action has a list of the functions that ran in it, as text and as figures for other tools."""
    profiler = AdvancedProfiler(tmp_path, "deep", line_count_restriction=5, dump_stats=True)
    fit(tmp_path, Net(logs=3), loader(2), profiler)
    text = (tmp_path / "fit-deep-0.txt").read_text(encoding="utf-8")
    part = text.split("Profile stats for: [Strategy]SingleDeviceStrategy.training_step")[1].split("Profile stats")[0]
    assert "due to restriction <5>" in part
    assert "training_step" in part
    assert any("training_step" in path.name for path in tmp_path.glob("fit-deep-0-*.prof"))


def test_an_advanced_profiler_ends_after_an_error(tmp_path: Path) -> None:
    """After an error in a hook nothing is profiled any more."""

    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fit(tmp_path, Net(), loader(2), AdvancedProfiler(tmp_path), callbacks=[Fails()])
    fit(tmp_path, Net(), loader(2), AdvancedProfiler(tmp_path))


def traces(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt.trace.json"))


def test_pytorch_writes_a_trace(tmp_path: Path) -> None:
    """Without a schedule the first steps are traced, with the names of actions, operations and submodules."""
    profiler = PyTorchProfiler(tmp_path, "torch", row_limit=5)
    fit(tmp_path, Net(), loader(2), profiler)
    [trace] = traces(tmp_path)
    assert trace.name.startswith("fit-torch-0.")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"aten::linear", "[Strategy]SingleDeviceStrategy.backward", "run_training_batch"} <= names
    assert "[module]torch.nn.modules.linear.Linear: layer" in names
    assert "Self CPU time total" in (tmp_path / "fit-torch-0.txt").read_text(encoding="utf-8")


def test_pytorch_keeps_to_the_schedule(tmp_path: Path) -> None:
    """A step of the schedule is a training batch: of two cycles each traces its own batches, whatever validates."""
    ready: list[int] = []

    def note(profile: Any) -> None:
        ready.append(sum(event.name == "run_training_batch" for event in profile.events()))

    plan = schedule(wait=1, warmup=1, active=2, repeat=2)
    profiler = PyTorchProfiler(schedule=plan, on_trace_ready=note)
    fit(tmp_path, Net(), loader(9), profiler, val=loader(3), val_check_interval=3)
    assert ready == [2, 2]
    assert not traces(tmp_path)


def test_pytorch_says_that_no_step_was_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the run ends before the schedule begins, the report says so."""
    plan = schedule(wait=5, warmup=1, active=1)
    fit(tmp_path, Net(), loader(2), PyTorchProfiler(schedule=plan, record_module_names=False))
    assert "No step was traced" in capsys.readouterr().out


def test_pytorch_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    """No mark stays in the model, not after an error either."""

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.layer(batch)
            raise KeyError("stop")

    module = Fails()
    with pytest.raises(KeyError):
        fit(tmp_path, module, loader(2), PyTorchProfiler(tmp_path))
    assert not module.layer._forward_hooks
    assert not module.layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"profile_memry": True}, '"profile_memory"'),
        ({"sort_by_key": "cpu_tim"}, '"cpu_time"'),
        ({"schedule": 5}, "ProfilerAction"),
        ({"schedule": lambda step: "record"}, "ProfilerAction"),
        ({"table_kwargs": {"row_limit": 5}}, "Write row_limit="),
        ({"table_kwargs": {"headr": 5}}, '"header"'),
        ({"on_trace_ready": 5}, "function"),
        ({"emit_nvtx": True}, "CUDA"),
        ({"dirpath": "s3://bucket/x"}, "local path"),
        ({"filename": "x" * 300}, "at most 255 bytes"),
    ],
)
def test_pytorch_refuses(given: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that cannot be meant is refused where it is written, with what to write."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"PyTorchProfiler\(") as refused:
        PyTorchProfiler(**given)
    assert says in str(refused.value)


def test_pytorch_reports_all_problems_at_once() -> None:
    """Two mistakes are one error."""
    with pytest.raises(ConfigError) as refused:
        PyTorchProfiler(sort_by_key="nothing", with_stak=True)
    assert str(refused.value).count("PyTorchProfiler(") == 2


@pytest.mark.parametrize("given", [0, -1, 1.5, "all", True])
def test_advanced_refuses_a_restriction(given: Any) -> None:
    """A restriction is a number of lines or a share of them."""
    with pytest.raises(ConfigError, match="line_count_restriction"):
        AdvancedProfiler(line_count_restriction=given)


def test_a_schedule_may_be_none(tmp_path: Path) -> None:
    """With schedule=None all steps are one trace."""
    profiler = PyTorchProfiler(tmp_path, schedule=None)
    fit(tmp_path, Net(), loader(7), profiler)
    assert len(traces(tmp_path)) == 1
    assert sum(event.name == "run_training_batch" for event in profiler.function_events) == 7
    assert schedule(wait=1, warmup=1, active=1)(0) is ProfilerAction.NONE


def test_a_subclass_of_profiler_measures_a_run(tmp_path: Path) -> None:
    """A subclass of Profiler that has start, stop and summary gets every action, and its report is printed."""

    class Names(Profiler):
        def __init__(self) -> None:
            super().__init__(dirpath=None, filename="names")
            self.began: list[str] = []
            self.ended: list[str] = []

        def start(self, action_name: str) -> None:
            self.began.append(action_name)

        def stop(self, action_name: str) -> None:
            self.ended.append(action_name)

        def summary(self) -> str:
            return ""

    profiler = Names()
    flags = {**SILENT, "max_epochs": 1, "logger": False, "default_root_dir": tmp_path}
    Trainer(**flags, profiler=profiler).fit(Everything(), datamodule=Data())
    assert sorted(profiler.began) == sorted(profiler.ended)
    assert {"run_training_epoch", "run_training_batch"} <= set(profiler.began)
