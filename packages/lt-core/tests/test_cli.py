"""Command line: what is parsed, made and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_parts import BARE, FEW, Injected, Late, Net, Noted, Own, Recorder, Rows, argv, written

from lt_core import Trainer
from lt_core.builtin.precision import DoublePrecision
from lt_core.callbacks import EarlyStopping, LearningRateMonitor
from lt_core.cli import (
    LightningArgumentParser,
    LightningCLI,
    Namespace,
    ReduceLROnPlateau,
    instantiate_class,
    instantiate_module,
)
from lt_core.plugins import TorchCheckpointIO
from lt_core.tracking.csv import CSVLogger
from lt_interface.errors import MisconfigurationException


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Begin with an empty command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSSIBLE_USER_WARNINGS", "off")
    with argv():
        yield


def made(*words: str, **settings: Any) -> LightningCLI:
    """Return what a command line without a run makes of a module and data."""
    return LightningCLI(**{"model_class": Net, "datamodule_class": Rows, "run": False, **settings}, args=list(words))


def fitted(*words: str, **settings: Any) -> LightningCLI:
    """Return what a command line with a fit leaves."""
    kwargs = {"model_class": Net, "datamodule_class": Rows, "save_config_kwargs": {"overwrite": True}, **settings}
    return LightningCLI(**kwargs, args=["fit", *words])


def test_objects_are_made_of_the_arguments() -> None:
    """Without a run the three objects hold what was written, and the rest has its defaults."""
    cli = made("--model.width=3", "--data.batch_size=5", "--trainer.max_epochs=7", "--seed_everything=3")
    assert (type(cli.model), type(cli.datamodule), type(cli.trainer)) == (Net, Rows, Trainer)
    assert cli.model.hparams.width == 3
    assert cli.datamodule.batch_size == 5
    assert cli.trainer.max_epochs == 7
    assert (cli.subcommand, cli.config.seed_everything, cli.config.model.scale) == (None, 3, 1.0)
    assert cli.config_init.model is cli.model


def test_the_process_arguments_are_read() -> None:
    """Without ``args`` the command line is the process's own."""
    with argv("fit", *BARE, "--model.width=2", "--data.width=2", "--optimizer=SGD"):
        cli = LightningCLI(Net, Rows)
    assert cli.trainer.global_step == 4
    assert cli.config.fit.model.width == 2


def test_arguments_beside_those_of_the_process_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives ``args`` on a command line with words is warned that these are not read."""
    monkeypatch.delenv("POSSIBLE_USER_WARNINGS")
    with argv("--model.width=9"), pytest.warns(UserWarning, match="own arguments are not read"):
        assert made("--model.width=3", "--trainer.max_epochs=1").model.hparams.width == 3


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_each_subcommand_runs_the_method_of_its_name(subcommand: str) -> None:
    """The word is the trainer's method, called with module and data."""
    cli = LightningCLI(Own, Rows, args=[subcommand, *BARE])
    assert cli.subcommand == subcommand
    assert cli.trainer.state.fn == subcommand
    assert cli.trainer.state.finished


def test_dicts_and_namespaces_are_arguments_too() -> None:
    """``args`` may be a configuration, with and without a subcommand."""
    assert made().config.model.width == 4
    flat = {"model": {"width": 3}, "trainer": {"logger": False}}
    for given in (flat, Namespace(**flat)):
        assert LightningCLI(Net, Rows, args=given, run=False).model.hparams.width == 3
    flags = {"logger": False, "fast_dev_run": True, "enable_progress_bar": False}
    cli = LightningCLI(Own, Rows, args={"subcommand": "fit", "fit": {"trainer": flags}})
    assert cli.trainer.state.finished


# ---------------------------------------------------------------- configuration files


def test_later_files_and_words_win(tmp_path: Path) -> None:
    """Of several files the later one wins, and what is written behind them wins over both."""
    first = written(tmp_path / "a.yaml", "model: {width: 1, scale: 2.0}\ntrainer: {max_epochs: 5}")
    second = written(tmp_path / "b.yaml", "model: {width: 2}")
    cli = made("--config", first, "-c", second, "--trainer.max_epochs=6")
    assert (cli.config.model.width, cli.config.model.scale, cli.config.trainer.max_epochs) == (2, 2.0, 6)


def test_files_stand_before_and_behind_the_subcommand(tmp_path: Path) -> None:
    """A file in front of the subcommand has its name as the first key and may be for several."""
    both = "fit: {model: {width: 3, name: before}}\ntest: {model: {width: 9}}"
    first = written(tmp_path / "all.yaml", both)
    second = written(tmp_path / "fit.yaml", "model: {name: behind}\ndata: {width: 3}")
    words = ["--config", first, "fit", "--config", second, *BARE, "--optimizer=SGD"]
    cli = LightningCLI(Net, Rows, args=words)
    assert (cli.model.hparams.width, cli.model.hparams.name) == (3, "behind")


def test_the_printed_configuration_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``--print_config`` prints makes the same objects when it is given as a file."""
    words = ["--model.part=cli_parts.Part", "--model.part.slope=0.25", "--trainer.callbacks+=EarlyStopping"]
    words += ["--trainer.callbacks.monitor=val", "--trainer.callbacks+=LearningRateMonitor", "--optimizer=Adam"]
    words += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=here", "--trainer.val_check_interval=3"]
    words += ["--trainer.check_val_every_n_epoch=null"]
    with pytest.raises(SystemExit) as end:
        made(*words, "--print_config")
    assert end.value.code == 0
    printed = written(tmp_path / "printed.yaml", capsys.readouterr().out)
    direct, again = made(*words).config, made("--config", printed).config
    del direct["config"], again["config"]
    assert again == direct


def test_the_saved_configuration_repeats_the_run_to_the_bit(tmp_path: Path) -> None:
    """The file beside the run trains the same weights again, whatever random state the process is in."""
    words = [*FEW, "--seed_everything=11", "--model.part=Part", "--model.part.slope=0.125", "--optimizer=Adam"]
    words += ["--optimizer.lr=0.1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--trainer.max_epochs=2"]
    words += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.gradient_clip_val=0.5"]
    first = fitted(*words)
    saved = Path(first.trainer.log_dir) / "config.yaml"
    torch.rand(3)
    again = fitted("--config", str(saved))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert Path(again.trainer.log_dir) != saved.parent
    assert (Path(again.trainer.log_dir) / "config.yaml").read_text() == saved.read_text()


def test_a_null_over_a_default_is_saved(tmp_path: Path) -> None:
    """A null that was written where the default is another value is in the saved file."""
    words = [*FEW, "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2", "--optimizer=SGD"]
    cli = fitted(*words, f"--trainer.default_root_dir={tmp_path}")
    assert "check_val_every_n_epoch: null" in (Path(cli.trainer.log_dir) / "config.yaml").read_text()


# ---------------------------------------------------------------- the trainer's plugins


def test_a_logger_is_named_with_its_arguments() -> None:
    """A logger's class is named by its short name, by its path, by its name in the registry, or in a file's dict."""
    for name in ("CSVLogger", "lt_core.loggers.CSVLogger"):
        cli = made(f"--trainer.logger={name}", "--trainer.logger.save_dir=there", "--trainer.logger.name=exp")
        assert type(cli.trainer.logger) is CSVLogger
        assert (Path(cli.trainer.logger.save_dir).name, cli.trainer.logger.name) == ("there", "exp")
    assert type(made("--trainer.logger=csv").trainer.logger) is CSVLogger
    assert made("--trainer.logger=false").trainer.logger is None
    assert type(made("--trainer.logger=true").trainer.logger) is CSVLogger


def test_any_class_with_a_loggers_methods_is_one(tmp_path: Path) -> None:
    """A logger needs no base class, and several are a list, names among them."""
    one = {"class_path": "cli_parts.Recorder", "init_args": {"tag": "a", "level": 4}}
    file = written(tmp_path / "c.yaml", f"trainer: {{logger: [{one}, csv]}}")
    first, second = made("--config", file).trainer.loggers
    assert (type(first), first.tag, first.level, type(second)) == (Recorder, "a", 4, CSVLogger)


def test_callbacks_are_added_one_by_one() -> None:
    """``+=`` adds a callback, and what follows are its arguments."""
    words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val", "--trainer.callbacks.patience=5"]
    words += ["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks+=cli_parts.Noted"]
    callbacks = made(*words, "--trainer.callbacks.word=heard").trainer.callbacks
    stopping, _, noted = (c for c in callbacks if isinstance(c, (EarlyStopping, LearningRateMonitor, Noted)))
    assert (stopping.monitor, stopping.patience, noted.word) == ("val", 5, "heard")


@pytest.mark.parametrize(
    ("flag", "value", "seen"),
    [
        ("strategy", "lt_core.builtin.single_device.SingleDeviceStrategy", "strategy"),
        ("strategy", "SingleDeviceStrategy", "strategy"),
        ("accelerator", "lt_core.builtin.cpu.CPUAccelerator", "accelerator"),
        ("profiler", "lt_core.profilers.PassThroughProfiler", "profiler"),
        ("launcher", "lt_core.builtin.in_process.InProcessLauncher", "_launcher"),
    ],
)
def test_plugins_are_named_by_their_class(flag: str, value: str, seen: str) -> None:
    """Strategy, accelerator, profiler and launcher are taken by the path or the short name of a class."""
    words = [] if flag == "accelerator" else ["--trainer.accelerator=cpu"]
    trainer = made(*words, f"--trainer.{flag}={value}").trainer
    assert type(getattr(trainer, seen)).__name__ == value.rpartition(".")[2]


def test_precisions_and_stores_are_plugins() -> None:
    """``plugins`` takes one class path or a list, and ``precision`` a name, a number or a class."""
    words = ["--trainer.plugins+=TorchCheckpointIO", "--trainer.plugins+=lt_core.plugins.DoublePrecision"]
    trainer = made(*words).trainer
    assert type(trainer._config.plugin("checkpoint_io")) is TorchCheckpointIO
    assert type(trainer._config.precision) is DoublePrecision
    assert made("--trainer.precision=64").trainer.precision == "64-true"
    one = made("--trainer.plugins=lt_core.plugins.io.TorchCheckpointIO").trainer
    assert type(one._config.plugin("checkpoint_io")) is TorchCheckpointIO


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("limit_train_batches=2", 2),
        ("limit_train_batches=1.0", 1.0),
        ("limit_train_batches=0.5", 0.5),
        ("fast_dev_run=3", 3),
        ("fast_dev_run=true", True),
        ("deterministic=warn", "warn"),
        ("max_time=00:01:00:00", "00:01:00:00"),
        ("devices=[0]", [0]),
        ("devices=auto", "auto"),
        ("val_check_interval=0.25", 0.25),
    ],
)
def test_values_of_flags_keep_their_kind(word: str, value: Any) -> None:
    """A text becomes the number, truth value, list or word that the flag's type reads in it."""
    found = made(f"--trainer.{word}", "--trainer.accelerator=cpu").config.trainer[word.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)
    torch.use_deterministic_algorithms(False)


def test_defaults_count_as_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags that nobody wrote are not given to the trainer, so that its environment variables and rules act on them."""
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
    trainer = made("--trainer.barebones=true").trainer
    assert (trainer.max_epochs, trainer.barebones) == (3, True)


# ---------------------------------------------------------------- optimizers and schedulers


def test_a_named_optimizer_is_the_modules() -> None:
    """``--optimizer`` and ``--lr_scheduler`` become what ``configure_optimizers`` returns."""
    words = ["--optimizer=Adam", "--optimizer.lr=0.01", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    cli = fitted(*BARE, *words)
    [optimizer], [config] = cli.trainer.optimizers, cli.trainer.lr_scheduler_configs
    assert type(optimizer) is torch.optim.Adam
    assert type(config.scheduler) is torch.optim.lr_scheduler.StepLR
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_plateau_scheduler_has_a_monitor() -> None:
    """``--lr_scheduler=ReduceLROnPlateau`` is the one with a monitor."""
    words = ["--optimizer=SGD", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val"]
    [config] = fitted(*BARE, *words).trainer.lr_scheduler_configs
    assert type(config.scheduler) is ReduceLROnPlateau
    assert config.monitor == "val"


def test_layers_of_configure_model_are_optimized() -> None:
    """The optimizer is made when the trainer asks, so it has the parameters that were created until then."""
    cli = fitted(*BARE, "--optimizer=SGD", model_class=Late)
    assert sum(len(group["params"]) for group in cli.trainer.optimizers[0].param_groups) == 4


def test_an_optimizer_over_the_modules_own_is_warned_of() -> None:
    """The command line's optimizer replaces the module's with a warning; without one the module's stays."""
    assert type(fitted(*BARE, model_class=Own).trainer.optimizers[0]) is torch.optim.SGD
    with pytest.warns(UserWarning, match="Own.configure_optimizers is replaced"):
        cli = fitted(*BARE, "--optimizer=Adam", model_class=Own)
    assert type(cli.trainer.optimizers[0]) is torch.optim.Adam


def test_optimizers_can_be_left_to_the_module() -> None:
    """With ``auto_configure_optimizers=False`` there is no such argument."""
    cli = fitted(*BARE, model_class=Own, auto_configure_optimizers=False)
    assert "optimizer" not in cli.config.fit


def test_a_fixed_optimizer_has_its_arguments_in_the_parser() -> None:
    """One class given to ``add_optimizer_args`` needs no path; a nested key works as any other."""

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(torch.optim.RMSprop, nested_key="model_optim.first")
            parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)
            parser.set_defaults({"model_optim.first.lr": 0.5, "lr_scheduler.gamma": 0.5})

        @staticmethod
        def configure_optimizers(lightning_module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}

    cli = Cli(Net, Rows, args=["fit", *BARE, "--model_optim.first.alpha=0.75"])
    [optimizer] = cli.trainer.optimizers
    assert type(optimizer) is torch.optim.RMSprop
    assert (optimizer.defaults["lr"], optimizer.defaults["alpha"]) == (0.5, 0.75)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5**5)  # once a step


def test_several_optimizers_are_linked_to_the_module() -> None:
    """``link_to`` gives the module class path and arguments, which `instantiate_class` makes an optimizer of."""

    class Two(Net):
        def __init__(self, first: dict | None = None, second: dict | None = None) -> None:  # type: ignore[type-arg]
            super().__init__()
            self.first, self.second = first, second
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> Any:
            return [instantiate_class(self.parameters(), init) for init in (self.first, self.second)]

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(nested_key="one", link_to="model.first")
            parser.add_optimizer_args(torch.optim.Adam, nested_key="two", link_to="model.second")

    cli = Cli(Two, Rows, args=["fit", *BARE, "--one=SGD", "--one.lr=0.125", "--two.lr=0.5"])
    first, second = cli.trainer.optimizers
    assert (type(first), type(second)) == (torch.optim.SGD, torch.optim.Adam)
    assert (first.defaults["lr"], second.defaults["lr"]) == (0.125, 0.5)


def test_two_optimizers_for_configure_optimizers_are_refused() -> None:
    """Only one optimizer can be the module's by itself."""

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(torch.optim.Adam, "one")
            parser.add_optimizer_args(torch.optim.Adam, "two")

    with pytest.raises(MisconfigurationException, match=r"one optimizer .*Got one, two\. .*link_to"):
        Cli(Net, Rows, run=False, args=[])


def test_optimizers_are_injected() -> None:
    """Annotated as `OptimizerCallable`, an argument is a function of the parameters; so for schedulers."""
    words = ["--model.optimizer=Adam", "--model.optimizer.lr=0.01"]
    words += ["--model.scheduler=StepLR", "--model.scheduler.step_size=2"]
    cli = fitted(*BARE, *words, model_class=Injected)
    assert type(cli.trainer.optimizers[0]) is torch.optim.Adam
    assert cli.trainer.optimizers[0].defaults["lr"] == 0.01
    assert cli.trainer.lr_scheduler_configs[0].scheduler.step_size == 2
    assert type(fitted(*BARE, model_class=Injected).trainer.optimizers[0]) is torch.optim.SGD


def test_classes_are_made_from_configurations() -> None:
    """`instantiate_class` and `instantiate_module` make what a configuration says."""
    init = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    assert instantiate_class(Net().parameters(), init).defaults["lr"] == 0.5
    part = {"class_path": "cli_parts.Part", "init_args": {"slope": 0.75}}
    assert instantiate_module(Net, {"width": 2, "part": part}).part.slope == 0.75
    assert type(instantiate_module(Net, {"_class_path": "cli_parts.Own", "width": 2})) is Own
    assert type(instantiate_module(Net, {"class_path": "cli_parts.Own", "init_args": {"width": 2}})) is Own


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"],
        ["--trainer.callbacks=ModelPruning", "--trainer.callbacks.pruning_fn=l1_unstructured"],
        ["--trainer.callbacks=ModelPruning", "--trainer.callbacks.pruning_fn=torch.nn.utils.prune.l1_unstructured"],
        ["--trainer.callbacks=WeightAveraging", "--trainer.callbacks.device=cpu"],
    ],
)
def test_the_configuration_of_a_callback_is_read_again(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed for a callback makes the same one, devices and names of functions included."""
    with pytest.raises(SystemExit):
        made(*words, "--print_config")
    text = capsys.readouterr().out
    assert "Unable" not in text
    Path("printed.yaml").write_text(text)
    cli = made("--config=printed.yaml")
    assert type(cli.trainer.callbacks[0]).__name__ == words[0].rpartition("=")[2]
