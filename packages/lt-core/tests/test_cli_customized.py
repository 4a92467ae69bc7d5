"""Command line: what subclasses, links, variables and callbacks change of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_parts import BARE, FEW, Net, Noted, Own, Rows, argv, net, written
from jsonargparse import lazy_instance

from lt_core import LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import LearningRateMonitor, ModelCheckpoint
from lt_core.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lt_interface.errors import ConfigError, MisconfigurationException


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Begin with an empty command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSSIBLE_USER_WARNINGS", "off")
    with argv():
        yield


def made(*words: str, cls: type[LightningCLI] = LightningCLI, **settings: Any) -> LightningCLI:
    """Return what a command line without a run makes of a module and data."""
    return cls(**{"model_class": Net, "datamodule_class": Rows, "run": False, **settings}, args=list(words))


# ---------------------------------------------------------------- what is named


def test_module_and_data_are_named_where_the_program_names_none() -> None:
    """Without classes any module and data module can be chosen, by path or short name; data may be left out."""
    cli = LightningCLI(run=False, args=["--model=cli_parts.Own", "--model.width=2", "--data=Rows", "--data.width=2"])
    assert (type(cli.model), type(cli.datamodule)) == (Own, Rows)
    assert cli.model.hparams.width == 2
    assert LightningCLI(run=False, args=["--model=Own"]).datamodule is None


def test_subclasses_are_chosen_in_subclass_mode() -> None:
    """In subclass mode a subclass takes the class's place."""
    cli = made("--model=Own", "--data=cli_parts.Rows", subclass_mode_model=True, subclass_mode_data=True)
    assert (type(cli.model), type(cli.datamodule)) == (Own, Rows)


def test_functions_stand_in_for_classes() -> None:
    """A function with annotations that returns a module or trainer is taken in the place of its class."""

    def trainer(quick: bool = True) -> Trainer:
        return Trainer(max_epochs=1 if quick else 9, logger=False)

    with pytest.warns(UserWarning, match="takes no 'callbacks'"):
        cli = LightningCLI(
            net, run=False, args=["--model.doubled=true", "--trainer.quick=false"], trainer_class=trainer
        )
    assert cli.model.hparams.width == 8
    assert cli.trainer.max_epochs == 9


def test_a_trainers_subclass_has_its_own_flags() -> None:
    """Flags that a subclass adds are read, beside those that it hands on."""

    class Mine(Trainer):
        def __init__(self, extra: int = 1, **kwargs: Any) -> None:
            self.extra = extra
            super().__init__(**kwargs)

    cli = made(
        "--trainer.extra=5", "--trainer.max_epochs=2", "--trainer.profiler=PassThroughProfiler", trainer_class=Mine
    )
    assert type(cli.trainer.profiler).__name__ == "PassThroughProfiler"
    assert (cli.trainer.extra, cli.trainer.max_epochs) == (5, 2)


# ---------------------------------------------------------------- defaults and callbacks of the program


def test_defaults_of_the_program_are_defaults() -> None:
    """``trainer_defaults`` and ``set_defaults`` count where nothing is written; their callbacks are always there."""

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.set_defaults({"model.width": 6, "data.batch_size": 3})

    lazy = lazy_instance(LearningRateMonitor, logging_interval="step")
    given = {"max_epochs": 3, "logger": False, "callbacks": [Noted("always"), lazy]}
    cli = made("--model.width=5", "--trainer.callbacks=ModelCheckpoint", cls=Cli, trainer_defaults=given)
    assert (cli.model.hparams.width, cli.datamodule.batch_size, cli.trainer.max_epochs) == (5, 3, 3)
    found = [c for c in cli.trainer.callbacks if isinstance(c, (Noted, LearningRateMonitor, ModelCheckpoint))]
    assert {type(c) for c in found} >= {Noted, ModelCheckpoint}
    assert any(isinstance(c, LearningRateMonitor) for c in found)


def test_defaults_may_be_lazy_instances_and_dicts() -> None:
    """A default that is an object is written as a lazy instance or as a configuration, and can be changed."""
    from lt_core.loggers import CSVLogger

    for default in (
        lazy_instance(CSVLogger, save_dir="a"),
        {"class_path": "CSVLogger", "init_args": {"save_dir": "a"}},
    ):
        cli = made("--trainer.logger.name=b", trainer_defaults={"logger": default})
        assert (Path(cli.trainer.logger.save_dir).name, cli.trainer.logger.name) == ("a", "b")


def test_callbacks_of_the_program_have_arguments() -> None:
    """A callback that the program adds under a key of its own is the trainer's, with the arguments there."""

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(Noted, "noted")
            parser.set_defaults({"noted.word": "default"})

    words = [c.word for c in made("--trainer.callbacks+=Noted", cls=Cli).trainer.callbacks if isinstance(c, Noted)]
    assert words == ["none", "default"]
    cli = made("--noted.word=written", cls=Cli)
    assert [c.word for c in cli.trainer.callbacks if isinstance(c, Noted)] == ["written"]


def test_only_lightning_classes_are_added_as_such() -> None:
    """`add_lightning_class_args` refuses another class."""
    with pytest.raises(MisconfigurationException, match="takes a subclass of Trainer, LightningModule"):
        LightningArgumentParser().add_lightning_class_args(dict, "words")


# ---------------------------------------------------------------- links


def test_arguments_are_linked_when_they_are_read_and_when_objects_are_made() -> None:
    """A link copies one argument to another, through a function, or what an object has once it is made."""

    class Linked(Net):
        def __init__(self, width: int = 4, classes: int = 0, name: str = "") -> None:
            super().__init__(width, name=name)
            self.classes = classes

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.width", "model.width")
            parser.link_arguments(("data.width", "data.batch_size"), "model.name", compute_fn=lambda a, b: f"{a}x{b}")
            parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")

    cli = made("--data.width=3", cls=Cli, model_class=Linked)
    assert (cli.model.hparams.width, cli.model.hparams.name, cli.model.classes) == (3, "3x2", 7)


# ---------------------------------------------------------------- seeds and variables


@pytest.mark.parametrize(
    ("word", "default", "seed"),
    [("", True, 0), ("", 5, 5), ("3", True, 3), ("0", 7, 0), ("1", 7, 1), ("true", False, 0), ("", False, None)],
)
def test_the_seed_is_set_and_kept(word: str, default: Any, seed: int | None) -> None:
    """The seed that was set stands in the configuration; false sets none."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    words = [f"--seed_everything={word}"] if word else []
    cli = made(*words, seed_everything_default=default)
    assert cli.config.seed_everything == (False if seed is None else seed)
    assert type(cli.config.seed_everything) is (bool if seed is None else int)
    if seed is not None:
        assert torch.initial_seed() == seed
    else:
        assert torch.initial_seed() == 99
        assert before.shape == torch.random.get_rng_state().shape


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``default_env`` each argument has a variable, of the subcommand too, and a whole file may be named."""
    monkeypatch.setenv("PL_MODEL__WIDTH", "3")
    monkeypatch.setenv("PL_TRAINER__MAX_EPOCHS", "2")
    monkeypatch.setenv("PL_CONFIG", written(tmp_path / "c.yaml", "model: {scale: 2.5, width: 9}"))
    cli = made(parser_kwargs={"default_env": True})
    assert (cli.config.model.width, cli.config.model.scale, cli.trainer.max_epochs) == (3, 2.5, 2)
    assert made("--model.width=5", parser_kwargs={"default_env": True}).config.model.width == 5
    assert made().config.model.width == 4
    monkeypatch.delenv("PL_CONFIG")
    monkeypatch.setenv("PL_FIT__MODEL__WIDTH", "6")
    monkeypatch.setenv("PL_FIT__DATA__WIDTH", "6")
    cli = LightningCLI(Own, Rows, args=["fit", *BARE], parser_kwargs={"default_env": True})
    assert cli.model.hparams.width == 6


def test_parsers_of_subcommands_have_settings_of_their_own(tmp_path: Path) -> None:
    """``parser_kwargs`` with the names of subcommands are those of their parsers."""
    files = {
        name: {"default_config_files": [written(tmp_path / f"{name}.yaml", f"model: {{name: {name}}}")]}
        for name in ("fit", "test")
    }
    for name in files:
        cli = LightningCLI(Own, Rows, args=[name, *BARE], parser_kwargs=files, save_config_callback=None)
        assert cli.model.hparams.name == name


# ---------------------------------------------------------------- the order of things


def test_hooks_of_the_program_run_in_order() -> None:
    """A subclass is asked before and after objects are made, and before and after the run, which it may replace."""
    seen: list[str] = []

    class Cli(LightningCLI):
        def before_instantiate_classes(self) -> None:
            seen.append(f"before {hasattr(self, 'model')}")
            self.config.fit.model.width = 2

        def after_instantiate_classes(self) -> None:
            seen.append(f"after {self.model.hparams.width}")

        def before_fit(self) -> None:
            seen.append("before_fit")

        def fit(self, **kwargs: Any) -> None:
            seen.append(" ".join(sorted(kwargs)))

        def after_fit(self) -> None:
            seen.append("after_fit")

    Cli(Net, Rows, args=["fit"])
    expected = ["before False", "after 2", "before_fit", "ckpt_path datamodule model weights_only", "after_fit"]
    assert seen == expected


def test_a_trainers_method_can_be_a_subcommand() -> None:
    """`subcommands` of a subclass may name other methods; what they take is on their command line."""

    class Mine(Trainer):
        def fine_tune(self, model: LightningModule, datamodule: LightningDataModule, depth: int = 1) -> None:
            """Train a little more."""
            self.seen = (type(model), type(datamodule), depth)

    class Cli(LightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {**LightningCLI.subcommands(), "fine_tune": {"model", "datamodule"}}

    cli = Cli(Net, Rows, args=["fine_tune", "--depth=3"], trainer_class=Mine)
    assert cli.trainer.seen == (Net, Rows, 3)


def test_the_trainer_can_be_made_with_more() -> None:
    """`instantiate_trainer` takes flags over those of the configuration."""

    class Cli(LightningCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            return super().instantiate_trainer(max_epochs=4, **kwargs)

    assert made("--trainer.max_epochs=1", cls=Cli).trainer.max_epochs == 4


# ---------------------------------------------------------------- the saved configuration


def config_of(cli: LightningCLI) -> Path:
    """Return where the configuration of a run should be."""
    return Path(cli.trainer.log_dir or "") / "config.yaml"


def test_the_configuration_of_another_run_is_not_replaced() -> None:
    """Without a folder of its own a second run refuses to write over the first one's file, unless it may."""
    words = ["fit", *BARE]
    LightningCLI(Own, Rows, args=words)
    first = Path("config.yaml").read_text()
    with pytest.raises(RuntimeError, match=r"replaces no configuration .*config\.yaml.*overwrite"):
        LightningCLI(Own, Rows, args=[*words, "--model.width=4", "--model.name=second"])
    assert Path("config.yaml").read_text() == first
    LightningCLI(Own, Rows, args=[*words, "--model.name=second"], save_config_kwargs={"overwrite": True})
    assert "name: second" in Path("config.yaml").read_text()


def test_a_resumed_run_keeps_the_newest_configuration() -> None:
    """A run that goes on where it was begun says there with what it goes on."""
    words = ["fit", *FEW, "--trainer.logger=false"]
    LightningCLI(Own, Rows, args=words)
    cli = LightningCLI(Own, Rows, args=[*words, "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert cli.trainer.global_step == 8
    assert "max_epochs: 2" in config_of(cli).read_text()


def test_where_and_how_it_is_saved_can_be_chosen() -> None:
    """The file's name is a setting, `save_config` of a subclass gets the run, and nothing need be saved."""
    texts: list[str] = []

    class Told(SaveConfigCallback):
        def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            texts.append(f"{stage} {trainer.is_global_zero} {self.parser.dump(self.config, skip_unset=False)}")

    kwargs = {"config_filename": "other.yaml", "overwrite": True}
    LightningCLI(Own, Rows, args=["fit", *BARE], save_config_callback=Told, save_config_kwargs=kwargs)
    assert Path("other.yaml").is_file()
    LightningCLI(
        Own, Rows, args=["fit", *BARE], save_config_callback=Told, save_config_kwargs={"save_to_log_dir": False}
    )
    assert [text.split()[:2] for text in texts] == [["fit", "True"]] * 2
    assert "seed_everything: 0" in texts[1]
    LightningCLI(Own, Rows, args=["fit", *BARE, "--trainer.fast_dev_run=true"])
    LightningCLI(Own, Rows, args=["fit", *BARE], save_config_callback=None)
    assert not Path("config.yaml").exists()


# ---------------------------------------------------------------- checkpoints


def test_the_checkpoints_hyper_parameters_are_the_defaults(tmp_path: Path) -> None:
    """With ``--ckpt_path`` the module is made as it was saved, except for what is written."""
    cli = LightningCLI(Own, Rows, args=["fit", *FEW, "--model.width=3", "--data.width=3", "--model.name=saved"])
    [path] = tmp_path.rglob("*.ckpt")
    words = [*FEW, "--trainer.logger=false", f"--ckpt_path={path}", "--data.width=3"]
    cli = LightningCLI(Own, Rows, args=["test", *words], save_config_callback=None)
    assert (cli.model.hparams.width, cli.model.hparams.name) == (3, "saved")
    cli = LightningCLI(Own, Rows, args=["test", *words, "--model.name=written"], save_config_callback=None)
    assert (cli.model.hparams.width, cli.model.hparams.name) == (3, "written")
    cli = LightningCLI(None, Rows, args=["validate", *words, "--model=Own"], save_config_callback=None)
    assert (type(cli.model), cli.model.hparams.width) == (Own, 3)


def test_no_class_that_a_checkpoint_names_is_imported(tmp_path: Path) -> None:
    """Texts of a file are defaults only for arguments that are texts."""

    class Careless(Own):
        def __init__(self, width: int = 4, other: torch.nn.Module | None = None, name: str = "") -> None:
            super().__init__(width, name=name)
            self.save_hyperparameters({"other": "os.system", "width": 4, "name": "kept"})

    LightningCLI(Careless, Rows, args=["fit", *FEW])
    [path] = tmp_path.rglob("*.ckpt")
    words = ["test", *FEW, "--trainer.logger=false", f"--ckpt_path={path}"]
    config = LightningCLI(Careless, Rows, args=words, save_config_callback=None).config.test.model
    assert (config.other, config.name) == (None, "kept")


def test_a_flag_that_the_trainer_refuses_is_its_error() -> None:
    """Called from Python, the trainer's own error is raised."""
    arguments: ArgsType = ["--trainer.max_epochs=-5"]
    with pytest.raises(ConfigError, match="max_epochs=-5"):
        LightningCLI(Net, Rows, args=arguments, run=False)
