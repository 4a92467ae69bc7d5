"""Parser of a command line: jsonargparse's, with what belongs to trainers, modules, optimizers and schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn, TypeVar

import torch
from jsonargparse import ArgumentParser, class_from_function  # type: ignore[attr-defined]
from jsonargparse.typing import register_type
from torch.optim import Optimizer

from lt_core.callback import Callback
from lt_core.cli.mistakes import one_line
from lt_core.cli.optimizers import LRSchedulerTypeTuple
from lt_core.cli.plugin_types import plugins_as_classes
from lt_core.datamodule import LightningDataModule
from lt_core.module import LightningModule
from lt_core.trainer import Trainer
from lt_core.version import __version__
from lt_interface.errors import ConfigTypeError, LTError, Problem

__all__ = ["AUTOMATIC", "LightningArgumentParser", "WithPath", "instantiate_module"]

ModuleType = TypeVar("ModuleType")
Chosen = tuple[Any, str]

AUTOMATIC = "AUTOMATIC"

register_type(torch.device, fail_already_registered=False)  # a file has its name, and not that it has none


class LightningArgumentParser(ArgumentParser):
    """Parser that knows trainers, modules, data modules, callbacks, optimizers and schedulers.

    Args:
        args: Those of ``jsonargparse.ArgumentParser``.
        description: What ``--help`` says first.
        env_prefix: What the names of environment variables begin with.
        default_env: Whether these are read.
        kwargs: Those of ``jsonargparse.ArgumentParser``.

    Attributes:
        callback_keys: Keys of the callbacks that the program adds to those of the trainer.
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Lightning Trainer command line tool",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs = {"allow_abbrev": False, "dump_header": [f"lt_core=={__version__}"], **kwargs}
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self.callback_keys: list[str] = []
        # What may be chosen, and what it is linked to, by the key at which it stands.
        self._optimizers: dict[str, Chosen] = {}
        self._lr_schedulers: dict[str, Chosen] = {}

    def add_lightning_class_args(
        self,
        lightning_class: Callable[..., Any] | type,
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Add the arguments of a trainer, module, data module or callback.

        Args:
            lightning_class: The class, or a function that returns an instance of one.
            nested_key: The key of the arguments; callbacks are added to the trainer's.
            subclass_mode: Whether any subclass may be chosen, by its path.
            required: Whether one must be.

        Returns:
            The names of the arguments.

        Raises:
            ConfigTypeError: If it is another class.
        """
        cls: Any = lightning_class
        if not isinstance(cls, type) and callable(cls):
            cls = class_from_function(cls)
        known = (Trainer, LightningModule, LightningDataModule, Callback)
        if not (isinstance(cls, type) and issubclass(cls, known)):
            names = ", ".join(each.__name__ for each in known)
            rule = f"it takes a subclass of {names}, or a function that returns one"
            raise ConfigTypeError(Problem("add_lightning_class_args", rule, repr(lightning_class), is_type=True))
        if issubclass(cls, Callback):
            self.callback_keys.append(nested_key)
        trains = issubclass(cls, Trainer)
        with plugins_as_classes() if trains else nullcontext():
            if subclass_mode:
                added = self.add_subclass_arguments(cls, nested_key, fail_untyped=False, required=required)
            else:
                added = self.add_class_arguments(
                    cls, nested_key, fail_untyped=False, instantiate=not trains, sub_configs=True
                )
        return list(added or [])

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of an optimizer, all but its parameters.

        Args:
            optimizer_class: The class; in a tuple, the classes of which a subclass may be chosen.
            nested_key: The key of the arguments.
            link_to: The key that gets class path and arguments, for `instantiate_class`, or ``"AUTOMATIC"``: the
                optimizer becomes what the module's ``configure_optimizers`` returns.
        """
        self._optimizers[nested_key] = (optimizer_class, link_to)
        self._add_choice(optimizer_class, nested_key, {"params"})

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: Any = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = AUTOMATIC,
    ) -> None:
        """Add the arguments of a scheduler, all but its optimizer; see `add_optimizer_args`.

        Args:
            lr_scheduler_class: The class; in a tuple, the classes of which a subclass may be chosen.
            nested_key: The key of the arguments.
            link_to: The key that gets class path and arguments, or ``"AUTOMATIC"``.
        """
        self._lr_schedulers[nested_key] = (lr_scheduler_class, link_to)
        self._add_choice(lr_scheduler_class, nested_key, {"optimizer"})

    def _add_choice(self, classes: Any, key: str, skip: set[Any]) -> None:
        words: dict[str, Any] = {"fail_untyped": False, "instantiate": False, "skip": skip}
        if isinstance(classes, tuple):
            self.add_subclass_arguments(classes, key, required=False, **words)
        else:
            self.add_class_arguments(classes, key, sub_configs=True, **words)

    def _chosen(self, config: Any) -> tuple[Any, Any]:
        """Return class path and arguments of the optimizer and of the scheduler for ``configure_optimizers``."""
        found = []
        for word, table in (("optimizer", self._optimizers), ("lr_scheduler", self._lr_schedulers)):
            keys = [key for key, (_, target) in table.items() if target == AUTOMATIC]
            if len(keys) > 1:
                rule = f"configure_optimizers can return one {word} of the command line"
                fix = f"Give each to add_{word}_args(..., link_to='model.NAME'), and write configure_optimizers."
                raise ConfigTypeError(Problem("LightningCLI", rule, ", ".join(keys), fix))
            value = config.get(keys[0]) if keys else None
            found.append(None if value is None else WithPath(table[keys[0]][0])(value))
        return found[0], found[1]

    def link_arguments(self, source: Any, target: str, *args: Any, **kwargs: Any) -> None:
        """Derive one argument from others.

        Args:
            source: The key, or a tuple of keys, that it comes from.
            target: The key that gets it.
            args: ``compute_fn``, and ``apply_on``: ``"parse"`` or ``"instantiate"``.
            kwargs: The same by keyword.
        """
        try:
            super().link_arguments(source, target, *args, **kwargs)
        except ValueError as error:
            self.error(f"link_arguments({source!r}, {target!r}): {error}", error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program with one line on standard error and status 2, or raise with ``exit_on_error=False``.

        Args:
            message: What is wrong, in jsonargparse's words.
            ex: Where it comes from.
        """
        if not self.exit_on_error:  # the parser of a class inside another one, too
            super().error(message, ex)
        blamed = getattr(ex, "subcommand_parser", None) or self
        line = " ".join(message.split()) if isinstance(ex, LTError) else one_line(blamed, message)
        commands = getattr(self._subcommands_action, "choices", None) or {}
        command = next((f" {word}" for word in getattr(self, "args", ()) if word in commands), "")
        prog = f"{self.prog}{command}" if blamed is self else blamed.prog
        self.exit(2, f"{prog.replace(' [options]', '')}: {line}\n")


class WithPath:
    """Function that gives arguments the path of their class, where only one class can be meant."""

    def __init__(self, classes: Any) -> None:
        self.path = None if isinstance(classes, tuple) else f"{classes.__module__}.{classes.__qualname__}"

    def __call__(self, value: Any) -> Any:
        """Return class path and arguments."""
        values = value.as_dict() if hasattr(value, "as_dict") else value
        if self.path is None or values is None or "class_path" in values:
            return values
        return {"class_path": self.path, "init_args": dict(values)}


def instantiate_module(module_class: type[ModuleType], config: Mapping[str, Any]) -> ModuleType:
    """Return a module or data module made from a part of a configuration.

    Args:
        module_class: The class, or with ``class_path`` or ``_class_path`` in the configuration a base of it.
        config: The arguments, as a configuration file holds them.
    """
    values = {key: value for key, value in config.items() if key != "_instantiator"}
    path = values.pop("_class_path", None)
    parser = ArgumentParser(exit_on_error=False)
    if path is not None or "class_path" in values:
        parser.add_subclass_arguments(module_class, "module", fail_untyped=False, required=True)
        values = values if path is None else {"class_path": path, "init_args": values}
    else:
        parser.add_class_arguments(module_class, "module", fail_untyped=False)
    made: ModuleType = parser.instantiate(parser.parse_object({"module": values}))["module"]
    return made
