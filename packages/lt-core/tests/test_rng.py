"""Test the capture, restoring and seeding of random generators."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quiet import QUIET

from lt_core import Trainer
from lt_core.builtin.cpu import CPUAccelerator
from lt_core.demos import BoringModel
from lt_core.state import rng
from lt_interface.errors import ConfigError


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_restore_repeats_every_global_generator() -> None:
    """A restored state gives the same draws of Python, numpy and torch."""
    state = rng.capture()
    first = draw()
    draw()
    rng.restore(state)
    assert draw() == first


def test_capture_is_plain_values_and_tensors() -> None:
    """A captured state holds only what a checkpoint can keep."""

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str)
                walk(item)
        else:
            assert value is None or isinstance(value, int | float | str | torch.Tensor), type(value)

    walk(rng.capture())


def test_isolate_leaves_no_trace_even_after_an_error() -> None:
    """The generators are after the block as they were before it, also when it raises."""
    state = rng.capture()
    expected = draw()
    rng.restore(state)

    def fail() -> None:
        with rng.isolate():
            draw()
            rng.seed_process(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert draw() == expected


def test_seed_everything_seeds_all_and_returns_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same draws; it is remembered in the environment."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    assert rng.seed_everything(5, workers=True, verbose=False) == 5
    first = draw()
    assert rng.seed_everything(5, verbose=False) == 5
    assert draw() == first
    assert rng.seed_everything(verbose=False) == 5
    assert draw() == first


@pytest.mark.parametrize("seed", [-1, 2**32, True])
def test_seed_everything_refuses_what_is_no_seed(seed: int) -> None:
    """A seed out of range is refused with the range."""
    with pytest.raises(ConfigError, match="0 to 4294967295"):
        rng.seed_everything(seed)


def test_a_broken_seed_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PL_GLOBAL_SEED that is no number is named, not replaced in silence."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "many")
    with pytest.raises(ConfigError, match=r"PL_GLOBAL_SEED.*'many'"):
        rng.seed_everything()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.Generator().manual_seed(1),
        lambda: random.Random(1),
        lambda: np.random.default_rng(1),
        lambda: np.random.RandomState(1),
        lambda: np.random.Generator(np.random.MT19937(1)),
        lambda: np.random.Generator(np.random.Philox(1)),
    ],
)
def test_owned_generators_are_saved_restored_and_seeded(make) -> None:  # type: ignore[no-untyped-def]
    """Every kind of generator that an object may own repeats its draws after a restore and after a seed."""

    def one(generator: object) -> float:
        if isinstance(generator, torch.Generator):
            return torch.rand((), generator=generator).item()
        return float(generator.random_sample() if isinstance(generator, np.random.RandomState) else generator.random())  # type: ignore[attr-defined]

    generator = make()
    assert rng.is_generator(generator)
    state = rng.generator_state(generator)
    first = one(generator)
    rng.set_generator_state(generator, state)
    assert one(generator) == first
    rng.reseed_generator(generator, 2**63 + 5)
    seeded = one(generator)
    rng.reseed_generator(generator, 2**63 + 5)
    assert one(generator) == seeded != first


class Diced(CPUAccelerator):
    """Accelerator whose device has a generator of its own."""

    kind = "tpu"

    def __init__(self) -> None:
        self.dice = torch.Generator().manual_seed(4)

    def rng_state(self, device: torch.device) -> Any:
        return self.dice.get_state()

    def set_rng_state(self, device: torch.device, state: Any) -> None:
        self.dice.set_state(state)

    def throw(self) -> int:
        """Return a number from the device's generator."""
        return int(torch.randint(1_000_000, (), generator=self.dice))


def test_a_devices_generator_goes_through_its_accelerator(tmp_path: Path) -> None:
    """The device's random state is in a checkpoint, and validation leaves it alone."""

    class Throws(BoringModel):
        def __init__(self, dice: Diced) -> None:
            super().__init__()
            self.dice, self.thrown = dice, list[int]()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.thrown.append(self.dice.throw())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.dice.throw()
            return super().validation_step(batch, batch_idx)

    def run(epochs: int, validate: int, path: Any = None) -> list[int]:
        dice = Diced()
        model = Throws(dice)
        flags = {**QUIET, "limit_train_batches": 3, "limit_val_batches": validate, "num_sanity_val_steps": 0}
        trainer = Trainer(**{**flags, "accelerator": dice, "devices": 1, "max_epochs": epochs})
        trainer.fit(model, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return model.thrown

    whole = run(2, 0)
    assert run(1, 2) == whole[:3]
    assert run(2, 2, tmp_path / "end.ckpt") == whole[3:]
