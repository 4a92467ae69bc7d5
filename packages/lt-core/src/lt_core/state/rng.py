"""Capture, restore and seed the random number generators of this process."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lt_core.notices import info
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_interface import Accelerator

__all__ = [
    "capture",
    "generator_state",
    "is_generator",
    "isolate",
    "pack",
    "reseed_generator",
    "restore",
    "seed_everything",
    "seed_process",
    "set_generator_state",
    "snapshot",
]

_SEED_LIMIT = 2**32


def pack(value: Any) -> Any:
    """Turn a state as its generator gives it into tensors and plain numbers, which a checkpoint can keep.

    Args:
        value: A generator's state, or a dict of such as `snapshot` returns.
    """
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, tuple):  # Python's
        version, words, gauss = value
        return {"version": version, "words": torch.from_numpy(np.array(words, dtype=np.int64)), "gauss": gauss}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.view(f"i{value.dtype.itemsize}").copy())
    return value.item() if isinstance(value, np.generic) else value


def _unpack(value: Any) -> Any:
    """Turn the tensors of a packed state back into arrays of unsigned integers."""
    if isinstance(value, dict):
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy().view(f"u{value.element_size()}")
    return value


def _unpack_python(state: dict[str, Any] | tuple[Any, ...]) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state["version"], tuple(state["words"].tolist()), state["gauss"])


def capture(accelerator: Accelerator | None = None, device: torch.device | None = None) -> dict[str, Any]:
    """Return what `snapshot` does, as plain values and tensors."""
    packed: dict[str, Any] = pack(snapshot(accelerator, device))
    return packed


def snapshot(accelerator: Accelerator | None = None, device: torch.device | None = None) -> dict[str, Any]:
    """Return the state of every global generator, as `restore` takes it; `pack` makes it fit for a checkpoint.

    Python's ``random``, numpy's global generator, torch's CPU generator and, where an accelerator is
    given that has one, the generator of its device.

    Args:
        accelerator: The kind of device.
        device: This rank's device.
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if accelerator is not None and device is not None:
        own = accelerator.rng_state(device)
        if own is not None:
            state[accelerator.kind] = own
    return state


def restore(state: dict[str, Any], accelerator: Accelerator | None = None, device: torch.device | None = None) -> None:
    """Set every global generator that ``state`` names; a device of another kind keeps its own state.

    Args:
        state: What `snapshot` or `capture` returned.
        accelerator: The kind of device.
        device: This rank's device.
    """
    if "python" in state:
        random.setstate(_unpack_python(state["python"]))
    if "numpy" in state:
        np.random.set_state(_unpack(state["numpy"]))
    if "torch" in state:
        torch.set_rng_state(state["torch"].cpu())
    if accelerator is not None and device is not None and state.get(accelerator.kind) is not None:
        accelerator.set_rng_state(device, state[accelerator.kind])


@contextmanager
def isolate(accelerator: Accelerator | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Leave the global generators, on exit, as they were on entry.

    Args:
        accelerator: The kind of device.
        device: This rank's device.
    """
    state = snapshot(accelerator, device)
    try:
        yield
    finally:
        restore(state, accelerator, device)


def seed_process(seed: int, device: torch.device | None = None) -> None:
    """Seed Python's, numpy's and torch's CPU generator from one 64-bit seed, in some microseconds.

    Args:
        seed: The seed.
        device: Whose generator is seeded, too.
    """
    random.seed(seed)
    np.random.seed((seed >> 32) ^ (seed & 0xFFFFFFFF))
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.manual_seed(seed)


def is_generator(value: Any) -> bool:
    """Return whether ``value`` is a random generator of torch, Python or numpy that an object may own."""
    return isinstance(value, torch.Generator | random.Random | np.random.Generator | np.random.RandomState)


def generator_state(generator: Any) -> Any:
    """Return the state of a generator that an object owns, as plain values and tensors."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return pack(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return pack(generator.get_state(legacy=False))
    return pack(generator.bit_generator.state)


def set_generator_state(generator: Any, state: Any) -> None:
    """Set a generator to what ``generator_state`` returned for one of its kind."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, random.Random):
        generator.setstate(_unpack_python(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_unpack(state))
    else:
        generator.bit_generator.state = _unpack(state)


def reseed_generator(generator: Any, seed: int) -> None:
    """Seed a generator that an object owns, in place."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, np.random.RandomState):
        generator.seed((seed >> 32) ^ (seed & 0xFFFFFFFF))
    else:
        kind: Any = type(generator.bit_generator)
        generator.bit_generator.state = kind(seed).state


def _bad_seed(where: str, got: str) -> ConfigError:
    return ConfigError(Problem(where, f"a seed is an integer from 0 to {_SEED_LIMIT - 1}", got, "Give such a number."))


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python's, numpy's and torch's global generators, and remember the seed for child processes.

    Args:
        seed: The seed; None takes the environment variable ``PL_GLOBAL_SEED``, else 0.
        workers: Kept in ``PL_SEED_WORKERS`` for code that reads it; workers of a DataLoader are
            always seeded batch by batch here.
        verbose: Whether to say the seed in the log.

    Returns:
        The seed.

    Raises:
        ConfigError: If the seed is no integer from 0 to 4294967295.
    """
    if seed is None:
        given = os.environ.get("PL_GLOBAL_SEED", "0")
        try:
            seed = int(given)
        except ValueError:
            raise _bad_seed("PL_GLOBAL_SEED", repr(given)) from None
    if isinstance(seed, bool) or not 0 <= int(seed) < _SEED_LIMIT or int(seed) != seed:
        raise _bad_seed("seed_everything(seed)", repr(seed))
    seed = int(seed)
    if verbose:
        info(f"Seed set to {seed}")
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    seed_process(seed)
    torch.manual_seed(seed)  # every device's generator too
    return seed
