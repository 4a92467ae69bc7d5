"""Steps and hooks that are no plain methods: partials, wrappers, functions, methods of others, on class or instance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, partialmethod, update_wrapper, wraps
from types import MethodType
from typing import Any

import pytest
import torch
from quiet import QUIET, Noting

from lt_core import Callback, LightningDataModule, Trainer

BATCHES = [torch.ones(2, 1)] * 2
Calls = list[Any]


def fitted(module: Any, *callbacks: Any, data: Any = None) -> None:
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0}, callbacks=list(callbacks))
    trainer.fit(
        module, **({"datamodule": data} if data else {"train_dataloaders": BATCHES, "val_dataloaders": BATCHES})
    )


def around(owner: Any, name: str, calls: Calls) -> None:
    """Put a wrapper around a method, as libraries do that place weights: a bound partial that names what it wraps."""
    old = getattr(owner, name)

    def new(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((name, len(args), bool(kwargs)))
        return old(*args, **kwargs)

    setattr(owner, name, MethodType(update_wrapper(partial(new), old), owner))


NAMES = {
    "training_step": 2,
    "validation_step": 2,
    "forward": 1,
    "on_train_start": 0,
    "on_train_batch_start": 2,
    "on_train_batch_end": 3,
    "on_before_batch_transfer": 2,
    "transfer_batch_to_device": 3,
    "on_after_backward": 0,
    "on_before_optimizer_step": 1,
    "backward": 1,
    "optimizer_zero_grad": 3,
    "configure_optimizers": 0,
    "setup": 1,
    "teardown": 1,
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_bound_partial_around_a_method_gets_all_arguments(name: str, times: int) -> None:
    """A wrapper that says what it wraps is called with each argument of the hook, however often it is put around."""
    calls: Calls = []

    class Calling(Noting):
        def forward(self, x: Any) -> Any:
            return self.layer(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).sum()

    module = Calling()
    for _ in range(times):
        around(module, name, calls)
    fitted(module)
    assert len(calls) % times == 0
    assert calls
    assert {call[:2] for call in calls} == {(name, NAMES[name])}


def forms(calls: Calls) -> dict[str, Callable[[Any], Any]]:
    def method(self: Any, *args: Any) -> None:
        calls.append(len(args))

    class Other:
        def start(self, batch: Any, batch_idx: int) -> None:
            calls.append(2)

        def __call__(self, *args: Any) -> None:
            calls.append(len(args))

    def shown(wrapped: Any) -> Any:
        @wraps(wrapped)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(args))
            return wrapped(*args, **kwargs)

        return wrapper

    return {
        "lambda": lambda m: lambda batch, batch_idx: calls.append(2),
        "of any arguments": lambda m: lambda *args: calls.append(len(args)),
        "partial": lambda m: partial(lambda extra, batch, batch_idx: calls.append(2), 1),
        "partial by name": lambda m: partial(lambda batch, batch_idx, extra: calls.append(2), extra=1),
        "partial that names a method": lambda m: update_wrapper(partial(method, m), type(m).on_train_batch_start),
        "bound partial": lambda m: MethodType(partial(method), m),
        "bound partial that names a function": lambda m: MethodType(
            update_wrapper(partial(method), type(m).on_train_batch_start), m
        ),
        "method of another": lambda m: Other().start,
        "callable object": lambda m: Other(),
        "wrapper": lambda m: shown(m.on_train_batch_start),
        "wrapper of a wrapper": lambda m: shown(shown(m.on_train_batch_start)),
        "cached": lambda m: cache(lambda batch, batch_idx: calls.append(2)),
    }


@pytest.mark.parametrize("name", forms([]))
def test_every_form_of_a_hook_on_an_instance_is_called(name: str) -> None:
    """What is set as a hook on a module or a callback is called with the hook's arguments."""
    calls: Calls = []
    module = Noting()
    module.on_train_batch_start = forms(calls)[name](module)  # type: ignore[method-assign]
    fitted(module)
    assert calls[0] == 2
    assert set(calls) == {2}


def test_hooks_set_on_callbacks_and_data_modules_are_called() -> None:
    """Functions, partials and bound partials set on a callback or a data module take the hook's arguments there too."""
    calls: Calls = []
    callback, data = Callback(), LightningDataModule()
    callback.on_train_start = lambda trainer, pl_module: calls.append("start")  # type: ignore[method-assign, misc, assignment]
    around(callback, "on_train_batch_end", calls)
    data.train_dataloader = partial(list, BATCHES)  # type: ignore[method-assign]
    data.val_dataloader = lambda: BATCHES  # type: ignore[method-assign]
    around(data, "setup", calls)
    fitted(Noting(), callback, data=data)
    assert calls == [("setup", 1, False), "start", ("on_train_batch_end", 5, False), ("on_train_batch_end", 5, False)]


def tracing(function: Any) -> Any:
    """Return a decorated method that takes anything, and notes how many arguments came by place."""

    @wraps(function)
    def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((function.__name__, len(args)))
        return function(self, *args, **kwargs)

    return inner


class Short(Noting):
    """Module whose methods take fewer arguments than there are, each in a decorator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Calls = []

    @tracing
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return self.layer(batch).sum()

    @tracing
    @tracing
    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        pass

    @tracing
    def on_train_batch_end(self, outputs: Any) -> None:  # type: ignore[override]
        pass

    @tracing
    def on_before_optimizer_step(self, *, optimizer: Any) -> None:  # type: ignore[override]
        self.seen.append(optimizer is not None)

    @staticmethod
    def on_train_epoch_start() -> None:  # type: ignore[override]
        pass

    on_after_backward = partialmethod(tracing(lambda self, extra: None), 3)  # type: ignore[assignment]


def test_a_decorated_short_form_gets_what_it_takes_by_place() -> None:
    """Decorated methods of fewer arguments get the leading ones by place, others by name."""
    module = Short()
    fitted(module)
    assert set(map(str, module.seen)) == {
        "('training_step', 1)",
        "('validation_step', 1)",
        "('on_train_batch_end', 1)",
        "('on_before_optimizer_step', 0)",
        "('<lambda>', 1)",
        "True",
    }


def test_a_wrapper_with_arguments_of_its_own_decides() -> None:
    """A decorator that lists its arguments is called with these, whatever it passes on."""

    def fixed(function: Any) -> Any:
        @wraps(function)
        def inner(self: Any, batch: Any, batch_idx: int) -> Any:
            self.seen.append(batch_idx)
            return function(self, batch)

        return inner

    class Fixed(Short):
        training_step = fixed(Short.training_step)

    module = Fixed()
    fitted(module)
    assert [s for s in module.seen if isinstance(s, int) and not isinstance(s, bool)] == [0, 1]


class ByOldName(Noting):
    """Base class that creates a layer under the old name of configure_model."""

    def configure_sharded_model(self) -> None:
        self.made: Calls = [*getattr(self, "made", []), "old"]


def passed_on(function: Any) -> Any:
    """Return a wrapper that adds nothing."""

    @wraps(function)
    def inner(self: Any) -> Any:
        return function(self)

    return inner


class Tracing(Noting):
    """Base class that puts a wrapper around both names, whether they do anything or not."""

    configure_model = passed_on(Noting.configure_model)
    configure_sharded_model = passed_on(Noting.configure_sharded_model)


class NewAndTraced(Tracing):
    """Module with a wrapped default of the old name and a method of the new one."""

    def configure_model(self) -> None:
        self.made: Calls = [*getattr(self, "made", []), "new"]


class OldAndTraced(ByOldName, Tracing):
    """Module with a wrapped default of the new name and a method of the old one."""


class Both(ByOldName):
    """Module with a method of the new name, whose base class has one of the old name."""

    def configure_model(self) -> None:
        self.made: Calls = [*getattr(self, "made", []), "new"]


class Alias(Noting):
    """Module with one method under both names."""

    def configure_model(self) -> None:
        self.made: Calls = [*getattr(self, "made", []), "new"]

    configure_sharded_model = configure_model


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (ByOldName, ["old"]),
        (NewAndTraced, ["new"]),
        (OldAndTraced, ["old"]),
        (Both, ["new", "old"]),
        (Alias, ["new"]),
        (Tracing, []),
    ],
)
def test_layers_are_created_under_either_name(tmp_path: Any, kind: type[Noting], made: Calls) -> None:
    """A default of one name, wrapped or not, is no conflict with a method of the other; each method is called once."""
    module = kind()
    trainer = Trainer(**{**QUIET, "max_epochs": 1})
    trainer.fit(module, BATCHES, BATCHES)
    assert getattr(module, "made", []) == made
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    assert getattr(kind.load_from_checkpoint(tmp_path / "m.ckpt"), "made", []) == made
