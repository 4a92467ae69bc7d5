"""Make parser, objects and run of a command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, get_args

from jsonargparse import ActionConfigFile, ArgumentError, Namespace  # type: ignore[attr-defined]
from torch.optim import Optimizer

import lt_core.callbacks  # noqa: F401 - so that the parser knows them by their short names
from lt_core.checkpoint.format import reading
from lt_core.cli.mistakes import one_line, refusal
from lt_core.cli.optimizers import ConfiguredOptimizers, ReduceLROnPlateau
from lt_core.cli.parser import AUTOMATIC, LightningArgumentParser, WithPath
from lt_core.cli.save_config import SaveConfigCallback
from lt_core.config.flags import FLAGS
from lt_core.datamodule import LightningDataModule
from lt_core.hooks.table import overrides
from lt_core.model.typed import Scope
from lt_core.module import LightningModule
from lt_core.notices import PossibleUserWarning, warn
from lt_core.run.old_flags import modern
from lt_core.state.rng import seed_everything
from lt_core.trainer import Trainer
from lt_interface.errors import ConfigError, LTError, Problem, nearest, raise_problems

__all__ = ["ArgsType", "LightningCLI"]

#: Type of what may stand in the place of the command line: its words, or a configuration.
ArgsType = list[str] | dict[str, Any] | Namespace | None


class LightningCLI:
    """Command line of a module and a data module: parsed, built and, unless ``run`` is False, run.

    Args:
        model_class: The module, or a function that returns one; None lets the command line name any.
        datamodule_class: The same for the data module; None lets the command line name one.
        save_config_callback: What keeps the configuration; None keeps none.
        save_config_kwargs: Its arguments.
        trainer_class: The trainer, or a function that returns one.
        trainer_defaults: Defaults of the trainer's flags; callbacks among them are always there.
        seed_everything_default: The default seed; True takes one from the environment or 0, False sets none.
        parser_kwargs: Arguments of the parser; or, for each subcommand, of that one's.
        parser_class: The class of the parsers.
        subclass_mode_model: Whether subclasses of ``model_class`` may be chosen.
        subclass_mode_data: The same for the data.
        args: What to parse in place of the process's arguments: a list as on a command line, or a configuration.
        run: Whether to have subcommands and run the one that is asked for.
        auto_configure_optimizers: Whether ``--optimizer`` and ``--lr_scheduler`` become ``configure_optimizers``.
        load_from_checkpoint_support: Whether hyper-parameters of the file at ``ckpt_path`` are the defaults of the
            module's arguments.

    Attributes:
        parser: The parser.
        config: What was parsed.
        config_init: The same with objects in the place of their configurations.
        subcommand: What is run, or None.
        model: The module.
        datamodule: The data module, or None.
        trainer: The trainer.
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | dict[str, dict[str, Any]] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        old = modern(trainer_defaults or {})
        raise_problems(old.problems)
        for message in old.warnings:
            warn(f"LightningCLI(trainer_defaults=...): {message}", FutureWarning)
        self.trainer_defaults = old.flags
        self.seed_everything_default = seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self.load_from_checkpoint_support = load_from_checkpoint_support
        self.model_class, self.datamodule_class = model_class, datamodule_class
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self.subcommand: str | None = None

        self._setup_parser(args, run)
        self.parse_arguments(self.parser, args)
        self.subcommand = self.config["subcommand"] if run else None
        if load_from_checkpoint_support:
            self._take_checkpoint(args)
        try:
            self._set_seed()
            self.before_instantiate_classes()
            self.instantiate_classes()
            self.after_instantiate_classes()
        except ConfigError as error:  # of what is written on the process's command line: no traceback
            if args is None:
                self._parser(self.subcommand).error(str(error), error)
            raise
        if self.subcommand is not None:
            self._run_subcommand(self.subcommand)

    # ------------------------------------------------------------ the parser

    def _setup_parser(self, args: ArgsType, run: bool) -> None:
        names = self.subcommands() if run else {}
        own = {name: words for name, words in self.parser_kwargs.items() if name in names}
        self.parser = self.init_parser(**{k: v for k, v in self.parser_kwargs.items() if k not in own})
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._method_arguments: dict[str, list[str]] = {}
        if not run:
            self._add_arguments(self.parser)
            return
        wanted = _asked_for(sys.argv[1:] if args is None else args, names, own or self.parser_kwargs)
        table = self.parser.add_subcommands()
        for name, skip in names.items():
            parser = self._subcommand_parsers[name] = self.init_parser(**own.get(name, {}))
            method = getattr(self.trainer_class, name)
            if name in wanted:
                self._add_arguments(parser)
                self._method_arguments[name] = parser.add_method_arguments(self.trainer_class, name, skip=set(skip))
            table.add_subcommand(name, parser, help=(method.__doc__ or "").strip().split("\n")[0])

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a new parser that takes configuration files.

        Args:
            kwargs: Its arguments.
        """
        parser = self.parser_class(**kwargs)
        help_text = "Path to a configuration file in json or yaml format; may be given several times."
        parser.add_argument("-c", "--config", action=ActionConfigFile, help=help_text)
        return parser

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser._optimizers:
                parser.add_optimizer_args((Optimizer,))
            if not parser._lr_schedulers:
                parser.add_lr_scheduler_args()
        self.link_optimizers_and_lr_schedulers(parser)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to no object: the seed.

        Args:
            parser: The parser.
        """
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="The seed of all generators; true takes PL_GLOBAL_SEED or 0, false sets none.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, module and data module.

        Args:
            parser: The parser.
        """
        known = parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = {f"trainer.{key}": value for key, value in self.trainer_defaults.items() if key != "callbacks"}
        rule, names = "the trainer takes no such argument", [name.partition(".")[2] for name in known]
        places = {key: f"LightningCLI(trainer_defaults={{{key!r}: ...}})" for key in self.trainer_defaults}
        unknown = [key for key in places if key not in names and key != "callbacks"]
        raise_problems([Problem(places[key], rule, fix=nearest(key, names), is_type=True) for key in unknown])
        parser.set_defaults(defaults)
        parser.add_lightning_class_args(self.model_class or LightningModule, "model", self.subclass_mode_model)
        data, required = self.datamodule_class or LightningDataModule, self.datamodule_class is not None
        parser.add_lightning_class_args(data, "data", self.subclass_mode_data, required=required)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add arguments and links of your own, in a subclass.

        Args:
            parser: The parser.
        """

    def link_optimizers_and_lr_schedulers(self, parser: LightningArgumentParser) -> None:
        """Link optimizers and schedulers to the keys that they are to be given to.

        Args:
            parser: The parser.
        """
        for key, (classes, target) in (parser._optimizers | parser._lr_schedulers).items():
            if target != AUTOMATIC:
                parser.link_arguments(key, target, compute_fn=WithPath(classes))

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's methods that can be run, each with the arguments that no command line gives."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "predict": {"model", "dataloaders", "datamodule"},
        }

    # ------------------------------------------------------------ what was asked for

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and keep the result as ``config``.

        Args:
            parser: The parser.
            args: What to parse; None takes the process's arguments.
        """
        if args is not None and len(sys.argv) > 1:
            message = f"LightningCLI(args=...): the process's own arguments are not read. Got {sys.argv[1:]!r}."
            warn(message, PossibleUserWarning)
        try:
            parse: Any = parser.parse_object if isinstance(args, (Mapping, Namespace)) else parser.parse_args
            self.config = parse(args)
        except ArgumentError as error:  # with exit_on_error=False
            raise ArgumentError(None, one_line(getattr(error, "subcommand_parser", parser), str(error))) from error

    def _parser(self, subcommand: str | None) -> LightningArgumentParser:
        return self.parser if subcommand is None else self._subcommand_parsers[subcommand]

    def _part(self, config: Namespace) -> Namespace:
        """Return what belongs to the subcommand of all that was parsed."""
        part: Namespace = config if self.subcommand is None else config[self.subcommand]
        return part

    def _get(self, config: Namespace, key: str, default: Any = None) -> Any:
        return self._part(config).get(key, default)

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if seed is not False and seed is not None:
            seed = seed_everything(None if seed is True else seed, workers=True)
            self._part(self.config)["seed_everything"] = seed

    # ------------------------------------------------------------ the objects

    def before_instantiate_classes(self) -> None:
        """Change ``config`` before objects are made of it, in a subclass."""

    def instantiate_classes(self) -> None:
        """Make data module, module and trainer."""
        try:
            self.config_init = self.parser.instantiate(self.config)
        except ValueError as error:
            raise refusal(error) or error from None
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers()
        self.trainer = self.instantiate_trainer()

    def after_instantiate_classes(self) -> None:
        """Use or change the objects before anything runs, in a subclass."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer.

        Args:
            kwargs: Flags that take precedence over the configuration.
        """
        parser = self._parser(self.subcommand)
        given = self._get(self.config_init, "trainer")
        flags = {**dict(given.items(branches=True, nested=False)), **kwargs}
        callbacks = [*_listed(flags.get("callbacks")), *(self._get(self.config_init, k) for k in parser.callback_keys)]
        callbacks += _listed(self.trainer_defaults.get("callbacks"))
        if self.save_config_callback and not flags.get("fast_dev_run"):
            config = self._part(self.config)
            callbacks.append(self.save_config_callback(parser, config, **self.save_config_kwargs))
        if "callbacks" in flags:
            flags["callbacks"] = callbacks
        elif callbacks:
            name = getattr(self.trainer_class, "__name__", self.trainer_class)
            warn(f"LightningCLI: {name} takes no 'callbacks', so these are left out: {callbacks!r}.")
        written = {k: v for k, v in flags.items() if k not in FLAGS or not _same(v, FLAGS[k].parameter.default)}
        return self.trainer_class(**written)

    def _add_configure_optimizers(self) -> None:
        if not self.auto_configure_optimizers:
            return
        optimizer, scheduler = self._parser(self.subcommand)._chosen(self._part(self.config_init))
        if optimizer is None:
            return
        if overrides(self.model, "configure_optimizers"):
            name = type(self.model).__name__
            warn(f"LightningCLI: {name}.configure_optimizers is replaced by the optimizer of the command line.")
        self.model.configure_optimizers = ConfiguredOptimizers(
            self.model, self.configure_optimizers, optimizer, scheduler
        )

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        """Return what ``configure_optimizers`` returns for an optimizer and a scheduler of the command line.

        Args:
            lightning_module: The module.
            optimizer: The optimizer.
            lr_scheduler: The scheduler, or None.
        """
        if lr_scheduler is None:
            return optimizer
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            scheduler = {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        return [optimizer], [lr_scheduler]

    # ------------------------------------------------------------ the run

    def _run_subcommand(self, subcommand: str) -> None:
        """Call ``before_fit``, then ``fit`` of this object or of the trainer, then ``after_fit``; so for each name."""
        given = {name: self._get(self.config_init, name) for name in self._method_arguments[subcommand]}
        given["model"] = self.model
        if self.datamodule is not None:
            given["datamodule"] = self.datamodule
        for method in (f"before_{subcommand}", subcommand, f"after_{subcommand}"):
            own = getattr(self, method, None)
            if method == subcommand:
                (own or getattr(self.trainer, method))(**given)
            elif own is not None:
                own()

    def _take_checkpoint(self, args: ArgsType) -> None:
        """Make what the file at ``ckpt_path`` says of the module the defaults of its arguments, and parse again."""
        path = self._get(self.config, "ckpt_path") if self.subcommand else None
        if not path or not os.path.exists(path):
            return
        try:
            saved = reading.load(path).get("hyper_parameters") or {}
        except (LTError, OSError):  # the trainer says what is wrong with it
            return
        model, parser = self._get(self.config, "model"), self._parser(self.subcommand)
        path = model.get("class_path") if self.subclass_mode_model else None
        cls: Any = self.model_class if path is None else resolve_name(path)
        types, there = Scope(cls).hints, model.get("init_args", {}) if path else model
        values = {k: v for k, v in saved.items() if k in there and _is_plain(v, texts=_takes_texts(types.get(k)))}
        inner = {f"model.{key}": value for key, value in values.items()}
        parser.set_defaults({"model": {"class_path": path, "init_args": values}} if path else inner)
        self.parse_arguments(self.parser, args)


def _asked_for(args: ArgsType, names: Mapping[str, Any], parser_kwargs: Mapping[str, Any]) -> set[str]:
    """Return the subcommands of which the arguments may be read: parsers of the others are not worth their time."""
    if any(parser_kwargs.get(word) for word in ("default_config_files", "default_env")):
        return set(names)
    if isinstance(args, (Mapping, Namespace)):
        return {name for name in names if name in args or args.get("subcommand") == name}
    if args and args[0] in names:
        return {args[0]}
    return set() if args in (["-h"], ["--help"]) else set(names)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and isinstance(value, (bool, int, float, str, type(None))) and value == default


def _takes_texts(annotation: Any) -> bool:
    """Return whether an annotation asks for nothing that a text could name: no class, no function."""
    parts = get_args(annotation)
    if parts:
        return all(_takes_texts(part) for part in parts)
    return annotation in (bool, int, float, str, list, dict, type(None), ...) or isinstance(annotation, (str, int))


def _is_plain(value: Any, texts: bool) -> bool:
    """Return whether a value of a file is kept as it was and names no class.

    Args:
        value: The value.
        texts: Whether texts in it are only texts.
    """
    if isinstance(value, Mapping):
        return all(str(k)[:1] != "$" and k != "class_path" and _is_plain(v, texts) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_plain(item, texts) for item in value)
    return texts if isinstance(value, str) else isinstance(value, (bool, int, float, type(None)))
