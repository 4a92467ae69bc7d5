"""Test that every name that users import is found, or answered."""

from __future__ import annotations

import operator
import pkgutil
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import lt_core
from lt_core.names import ABSENT, MODULES, instead
from lt_interface import registry

# Each module that code for PyTorch Lightning imports from, with names that it takes there.
PLACES = {
    "lt_core": "Callback CombinedLoader LightningDataModule LightningModule Trainer __version__ seed_everything",
    "lt_core.accelerators": "Accelerator CPUAccelerator",
    "lt_core.callbacks": "Callback Checkpoint EarlyStopping LambdaCallback LearningRateMonitor ModelCheckpoint "
    "DeviceStatsMonitor ModelSummary OnExceptionCheckpoint ProgressBar RichModelSummary RichProgressBar "
    "ThroughputMonitor Timer",
    "lt_core.callbacks.callback": "Callback",
    "lt_core.callbacks.checkpoint": "Checkpoint",
    "lt_core.callbacks.early_stopping": "EarlyStopping",
    "lt_core.callbacks.lr_monitor": "LearningRateMonitor",
    "lt_core.callbacks.model_checkpoint": "ModelCheckpoint",
    "lt_core.callbacks.model_summary": "ModelSummary",
    "lt_core.callbacks.progress": "ProgressBar RichProgressBar",
    "lt_core.callbacks.device_stats_monitor": "DeviceStatsMonitor",
    "lt_core.callbacks.throughput_monitor": "ThroughputMonitor",
    "lt_core.callbacks.gradient_accumulation_scheduler": "GradientAccumulationScheduler",
    "lt_core.callbacks.progress.progress_bar": "ProgressBar",
    "lt_core.callbacks.progress.rich_progress": "RichProgressBar RichProgressBarTheme",
    "lt_core.callbacks.stochastic_weight_avg": "StochasticWeightAveraging",
    "lt_core.callbacks.weight_averaging": "EMAWeightAveraging WeightAveraging",
    "lt_core.profilers.profiler": "Profiler",
    "lt_core.callbacks.timer": "Timer",
    "lt_core.core": "LightningDataModule LightningModule",
    "lt_core.core.datamodule": "LightningDataModule",
    "lt_core.core.mixins": "HyperparametersMixin",
    "lt_core.core.module": "LightningModule",
    "lt_core.core.optimizer": "LightningOptimizer",
    "lt_core.demos": "BoringModel",
    "lt_core.demos.boring_classes": "BoringDataModule BoringModel RandomDataset",
    "lt_core.loggers": "CSVLogger Logger",
    "lt_core.loggers.csv_logs": "CSVLogger",
    "lt_core.loggers.logger": "DummyLogger Logger rank_zero_experiment",
    "lt_core.plugins": "AsyncCheckpointIO CheckpointIO ClusterEnvironment DoublePrecision HalfPrecision Precision",
    "lt_core.plugins.environments": "ClusterEnvironment",
    "lt_core.plugins.io": "AsyncCheckpointIO CheckpointIO TorchCheckpointIO",
    "lt_core.plugins.precision": "DoublePrecision HalfPrecision Precision",
    "lt_core.profilers": "AdvancedProfiler PassThroughProfiler Profiler PyTorchProfiler SimpleProfiler",
    "lt_core.profilers.advanced": "AdvancedProfiler",
    "lt_core.profilers.pytorch": "PyTorchProfiler",
    "lt_core.profilers.simple": "SimpleProfiler",
    "lt_core.strategies": "SingleDeviceStrategy Strategy",
    "lt_core.trainer": "Trainer",
    "lt_core.trainer.states": "RunningStage TrainerFn TrainerState TrainerStatus",
    "lt_core.trainer.trainer": "Trainer",
    "lt_core.utilities": "AttributeDict CombinedLoader ModelSummary STEP_OUTPUT apply_to_collection grad_norm "
    "is_overridden measure_flops move_data_to_device rank_zero_info rank_zero_only rank_zero_warn summarize",
    "lt_core.utilities.apply_func": "apply_to_collection move_data_to_device",
    "lt_core.utilities.combined_loader": "CombinedLoader",
    "lt_core.utilities.data": "extract_batch_size has_len suggested_max_num_workers",
    "lt_core.utilities.distributed": "rank_zero_only",
    "lt_core.utilities.exceptions": "MisconfigurationException SIGTERMException",
    "lt_core.utilities.memory": "garbage_collection_cuda is_oom_error recursive_detach",
    "lt_core.utilities.parameter_tying": "find_shared_parameters set_shared_parameters",
    "lt_core.utilities.warnings": "PossibleUserWarning disable_possible_user_warnings",
    "lt_core.utilities.grads": "grad_norm",
    "lt_core.utilities.model_helpers": "is_overridden",
    "lt_core.utilities.model_summary": "ModelSummary get_human_readable_count summarize",
    "lt_core.utilities.parsing": "AttributeDict is_picklable lightning_getattr lightning_hasattr lightning_setattr",
    "lt_core.utilities.rank_zero": "rank_zero_debug rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
    "lt_core.utilities.seed": "isolate_rng pl_worker_init_function reset_seed seed_everything",
    "lt_core.utilities.throughput": "Throughput get_available_flops measure_flops",
    "lt_core.utilities.types": "EVAL_DATALOADERS LRSchedulerConfig LRSchedulerConfigType LRSchedulerPLType "
    "LRSchedulerTypeUnion OptimizerLRScheduler STEP_OUTPUT TRAIN_DATALOADERS",
}

CLASSES = "CometLogger DeepSpeedStrategy FSDPStrategy ModelParallelStrategy NeptuneLogger XLAProfiler XLAStrategy"


@pytest.mark.parametrize("module", PLACES)
def test_a_name_is_found_where_users_import_it(module: str) -> None:
    """Each name of a module can be imported from it."""
    for name in PLACES[module].split():
        exec(f"from {module} import {name}", {})


def test_a_package_is_an_attribute() -> None:
    """Packages inside lt_core need no import of their own, and cost none before they are asked for."""
    rooms = ["callbacks", "loggers", "profilers", "strategies", "plugins", "utilities", "demos"]
    program = "import lt_core as L, sys\n"
    program += f"for room in {rooms}: assert f'lt_core.{{room}}' not in sys.modules or room in vars(L)\n"
    program += f"for room in {rooms}: getattr(L, room)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.parametrize("name", [*ABSENT, *CLASSES.split()])
@pytest.mark.parametrize("module", ["lt_core", "lt_core.callbacks", "lt_core.strategies", "lt_core.utilities"])
def test_a_name_that_is_not_here_is_answered(module: str, name: str) -> None:
    """Importing what this version does not have says so, with what to do instead, from wherever it is tried."""
    with pytest.raises(ImportError, match=rf"{module}\.{name}: this version does not have it\. [A-Z].*\.$"):
        exec(f"from {module} import {name}", {})


def test_a_module_that_is_not_here_is_answered() -> None:
    """Importing a module that this version does not have says what to write, as does any other of its package."""
    for module in MODULES:
        missing = f"lt_core.{module.replace('*', 'missing')}"
        rule = "this version does not have this module"
        with pytest.raises(ModuleNotFoundError, match=rf"^{missing}: {rule}\. [A-Z].*\.$"):
            exec(f"from {missing} import Name", {})


def test_answers_name_what_is_here() -> None:
    """What an answer names of this package, of a trainer or of a callback can be found."""
    trainer = lt_core.Trainer(max_epochs=1, logger=False)
    for text in [*ABSENT.values(), *MODULES.values()]:
        for statement in re.findall(r"Write: ((?:from|import) .*?)(?:\. |\.$|;)", text):
            exec(statement.replace("import NAME", "import __name__"), {})
        for path in re.findall(r"lt_core(?:\.\w+)+", text):
            pkgutil.resolve_name(path)
        for path in re.findall(r"trainer((?:\.\w+)+)", text):
            assert operator.attrgetter(path[1:])(trainer) is not None
        for hook in re.findall(r"\bon_\w+", text):
            assert hasattr(lt_core.Callback, hook)


def test_no_answer_hides_what_is_here() -> None:
    """A name that some module has is not among those that are answered."""
    here = {name for names in PLACES.values() for name in names.split()}
    assert not [name for name in here if instead(name)]


def test_a_misspelt_name_is_an_ordinary_error() -> None:
    """An unknown name is an AttributeError that has the nearest one, so that hasattr works."""
    with pytest.raises(AttributeError, match=r"no attribute 'Trainr'\. Did you mean 'Trainer'"):
        lt_core.Trainr  # noqa: B018
    assert not hasattr(lt_core.callbacks, "Nothing")
    assert not hasattr(lt_core, "__wrapped__")


def test_a_class_of_a_package_that_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a logger or a strategy of a sibling package that is not installed answers with the command."""
    monkeypatch.setattr(registry, "_scan", dict)
    for statement, package in (
        ("from lt_core.loggers import WandbLogger", "lt-loggers"),
        ("from lt_core.loggers.tensorboard import TensorBoardLogger", "lt-loggers"),
        ("from lt_core.strategies import DDPStrategy", "lt-accel"),
        ("from lt_core.accelerators import CUDAAccelerator", "lt-accel"),
    ):
        with pytest.raises(ImportError, match=f"comes with another package.*pip install.*{package}"):
            exec(statement, {})


class TestFunctions:
    """Functions that users' code takes from a trainer."""

    def test_norms_of_gradients(self) -> None:
        """Each gradient's norm is there by its name, and the norm of all is that of their norms."""
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        model(torch.ones(4, 3)).sum().backward()
        found = lt_core.utilities.grad_norm(model, 2, ".")
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert set(found) == {f"grad_2.0_norm.{name}" for name in named} | {"grad_2.0_norm_total"}
        for name, grad in named.items():
            assert torch.equal(found[f"grad_2.0_norm.{name}"], grad.norm())
        together = torch.cat([grad.flatten() for grad in named.values()]).norm()
        torch.testing.assert_close(found["grad_2.0_norm_total"], together)
        largest = max(float(grad.abs().max()) for grad in named.values())
        assert float(lt_core.utilities.grad_norm(model, "inf")["grad_inf_norm_total"]) == largest
        assert lt_core.utilities.grad_norm(nn.Linear(1, 1), 2) == {}
        with pytest.raises(ValueError, match=r"the order must be above 0\. Got 0"):
            lt_core.utilities.grad_norm(model, 0)

    def test_floating_point_operations(self) -> None:
        """A linear layer takes two operations a weight and sample forward, and a training model stays as it was."""
        model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 1, bias=False)).eval()
        x = torch.randn(5, 8)
        assert lt_core.utilities.measure_flops(model, lambda: model(x)) == 2 * 5 * (8 * 4 + 4)
        more = lt_core.utilities.measure_flops(model, lambda: model(x), torch.sum)
        assert more == 2 * 5 * (8 * 4 + 4) * 2 + 2 * 5 * 4  # all weights' gradients, and that of what lies between
        assert not any(child.training for child in model.modules())

    def test_overridden_methods(self) -> None:
        """A method counts as overridden where the class or the object has its own, by its usual base or a given one."""

        class Own(lt_core.LightningModule):
            def training_step(self, batch: Any, batch_idx: int) -> None: ...

        class Base:
            def run(self) -> None: ...

        class Child(Base):
            def run(self) -> None: ...

        asked = lt_core.utilities.is_overridden
        assert asked("training_step", Own())
        assert not asked("validation_step", Own())
        assert asked("run", Child(), Base)
        assert not asked("run", Base(), Base)
        assert not asked("training_step", None)
        assert asked("on_fit_start", lt_core.callbacks.LambdaCallback(on_fit_start=print))

    def test_attributes_wherever_users_keep_them(self) -> None:
        """An attribute is read and set at the module and in its hyper-parameters; one that nothing has is an error."""
        from lt_core.utilities import parsing

        class Net(lt_core.LightningModule):
            def __init__(self, lr: float = 0.1) -> None:
                super().__init__()
                self.save_hyperparameters()

        net = Net()
        parsing.lightning_setattr(net, "lr", 0.3)
        assert (net.hparams.lr, parsing.lightning_getattr(net, "lr")) == (0.3, 0.3)
        assert not parsing.lightning_hasattr(net, "depth")
        with pytest.raises(AttributeError, match="Net, its data module and their hparams have no 'depth'"):
            parsing.lightning_setattr(net, "depth", 1)

    def test_shared_parameters_are_found_and_set_again(self) -> None:
        """Names of one parameter are a group, and setting groups of a copy ties its parameters as the original's."""
        tying = lt_core.utilities.parameter_tying
        first, second = (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))) for _ in range(2))
        first[1][0].weight = first[0].weight
        assert tying.find_shared_parameters(second) == []
        assert tying.set_shared_parameters(second, tying.find_shared_parameters(first)) is second
        assert second[1][0].weight is second[0].weight

    def test_sizes_of_batches_and_loaders(self) -> None:
        """A batch has its size, a stream has none, and a batch without a tensor is refused."""
        from lt_core.utilities import data

        assert data.extract_batch_size({"x": ["a", torch.ones(3, 2)]}) == 3
        assert (data.has_len([1]), data.has_len(iter([1]))) == (True, False)
        with pytest.raises(lt_core.MisconfigurationException, match=r"where there is a tensor in it\. Got list"):
            data.extract_batch_size(["a"])

    def test_a_summary_by_its_old_name(self) -> None:
        """ModelSummary of the utilities is called on a model and has its counts."""
        summary = lt_core.utilities.ModelSummary(nn.Linear(3, 2), max_depth=1)
        assert (summary.total_parameters, summary.trainable_parameters) == (8, 8)
        assert "8" in str(summary)

    def test_a_tracker_only_on_the_first_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A logger's experiment is made on rank 0; elsewhere every call of it does nothing."""

        class Own:
            @property
            @lt_core.loggers.logger.rank_zero_experiment
            def experiment(self) -> Any:
                return ["made"]

        assert Own().experiment == ["made"]
        monkeypatch.setenv("RANK", "1")
        Own().experiment.add_scalar("x", 1)
