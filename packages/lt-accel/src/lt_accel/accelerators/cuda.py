"""NVIDIA (or, by torch's build for it, AMD) cards as an accelerator.

What the parent process asks (which cards there are, which a flag means) is answered without a CUDA context, since a
forked process cannot use CUDA once its parent has: torch counts by NVML, and ``nvidia-smi`` knows the rest. `setup`, in
each rank, chooses the device before anything is allocated, and turns CUDA's errors into what to do about them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lt_accel.accelerators.cards import installed, visible
from lt_accel.accelerators.faults import no_cards, not_usable
from lt_accel.accelerators.indices import chosen, read, refusal
from lt_accel.accelerators.memory import explain_memory, size
from lt_accel.accelerators.streams import CopyStream
from lt_accel.clusters.slurm import SlurmCluster
from lt_accel.clusters.torchrun import TorchrunCluster
from lt_interface import MisconfigurationException, Plan, Problem

__all__ = ["CUDAAccelerator"]

_IDLE = "auto-idle"
_NOISE = 256.0  # MB that an idle card may hold for its driver
_MATMUL = 'torch.set_float32_matmul_precision("high")'


class CUDAAccelerator:
    """Cards that torch reaches by CUDA: one process for each."""

    name = "cuda"
    kind = "gpu"
    priority = 20

    def is_available(self) -> bool:
        """Return whether there is a card that torch was built for; no context is created."""
        return self.device_count() > 0

    def device_count(self) -> int:
        """Return how many cards this process sees; 1 where ``CUDA_VISIBLE_DEVICES`` names an instance of one (MIG)."""
        if _instance():
            return int(torch.version.cuda is not None)
        return torch.cuda.device_count()

    def parse_devices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return the indices of the cards that a flag means, as ``CUDA_VISIBLE_DEVICES`` numbers them.

        Args:
            spec: A number of cards, -1 for all, indices, ``"auto"``, ``"auto-idle"`` for the least used card
                (``"auto-idle:2"`` for two), or UUIDs such as ``"GPU-8932f937"``, separated by commas.

        Raises:
            ValueError: If a card is not there, or the flag means none.
        """
        asked = read(spec)
        count = self.device_count()
        if isinstance(asked, str) and asked != "auto":
            word, _, number = asked.partition(":")
            if word == _IDLE and (number.isdigit() or asked == _IDLE):
                return _idle(spec, int(number or 1), count)
            if asked.startswith(("GPU-", "MIG-")):
                return _by_uuid(spec, [part.strip() for part in asked.split(",")], count)
        if _instance() and asked not in ("auto", -1, 1, [0]):
            got = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
            raise refusal(spec, "a process uses one instance of a divided card (MIG)", got, "Write devices=1.")
        return chosen(spec, asked, [f"cuda:{i}" for i in range(count)])

    def default_strategy(self, devices: int, nodes: int) -> str:
        """Return ``single_device`` for one process in all, else ``ddp``."""
        return "single_device" if devices * nodes == 1 else "ddp"

    def device(self, index: int) -> torch.device:
        """Return the card of an index; the first where a scheduler lets each of its processes see one of its own."""
        own = "CUDA_VISIBLE_DEVICES" in os.environ and self.device_count() == 1
        return torch.device("cuda", 0 if own else index)

    def setup(self, device: torch.device) -> None:
        """Make a card the one that this process allocates on, and see that it can be used.

        Raises:
            ValueError: If the device is of another kind.
            MisconfigurationException: If the card cannot be used; says why, and what to do.
        """
        if device.type != "cuda":
            raise ValueError(
                f'CUDAAccelerator: the device must be "cuda". Got "{device}". Choose the accelerator of that device.'
            )
        try:
            torch.cuda.set_device(device)
            torch.cuda.mem_get_info(device)  # the first call that needs a context: a card in use by others refuses it
            torch.cuda.reset_peak_memory_stats(device)
        except (RuntimeError, AssertionError, AttributeError) as error:  # the last from a build without CUDA
            raise MisconfigurationException(not_usable(device, error)) from error

    def stats(self, device: torch.device) -> dict[str, Any]:
        """Return memory in bytes and, where nvidia-ml-py is installed, utilisation, temperature and power."""
        free, total = torch.cuda.mem_get_info(device)
        found: dict[str, Any] = {
            "memory_allocated_bytes": torch.cuda.memory_allocated(device),
            "memory_reserved_bytes": torch.cuda.memory_reserved(device),
            "memory_peak_bytes": torch.cuda.max_memory_allocated(device),
            "memory_free_bytes": free,
            "memory_total_bytes": total,
        }
        if find_spec("pynvml") is None:
            return found
        sensors: dict[str, tuple[Callable[..., float], float]] = {
            "utilization_percent": (torch.cuda.utilization, 1),
            "temperature_celsius": (torch.cuda.temperature, 1),
            "power_watts": (torch.cuda.power_draw, 1e-3),
        }
        for name, (read_sensor, scale) in sensors.items():
            try:
                found[name] = read_sensor(device) * scale
            except Exception:  # a sensor that this card lacks, in whichever words of its driver
                continue
        return found

    def rng_state(self, device: torch.device) -> Any:
        """Return the state of the card's generator, under the accelerator's name."""
        return {self.name: torch.cuda.get_rng_state(device)}

    def set_rng_state(self, device: torch.device, state: Any) -> None:
        """Take over a state of this kind of device; a state of another kind of GPU is left alone."""
        if isinstance(state, Mapping) and self.name in state:
            torch.cuda.set_rng_state(state[self.name].cpu(), device)

    def side_stream(self, device: torch.device) -> CopyStream | None:
        """Return a stream on which batches are copied to a card beside what it computes."""
        return CopyStream(device) if device.type == "cuda" else None

    def teardown(self) -> None:
        """Give the memory that no tensor holds back to the card, so that others, and the next fit, find it."""
        if _in_use():
            gc.collect()  # the last step's graph may lie in a circle
            torch.cuda.empty_cache()

    def problems(self, plan: Plan, forks: bool) -> Sequence[Problem]:
        """Refuse to fork a process that uses CUDA already."""
        if not forks or not _in_use():
            return []
        rule = "a forked process cannot use CUDA once the launching one does, and this one does"
        fix = "Move nothing to a card before the trainer is called, or choose a launcher that does not fork."
        return [Problem(f"launcher {plan.launcher!r}", rule, fix=fix)]

    def describe(self, index: int) -> str:
        """Return a card's name, with product and memory once CUDA is in use."""
        name = f"cuda:{index}"
        if not _in_use():
            return name
        card = torch.cuda.get_device_properties(index)
        return f"{name} ({card.name}, {size(card.total_memory)})"

    def missing(self) -> Problem | None:
        """Return why none of the machine's cards can be used."""
        return None if self.is_available() else no_cards()

    def advice(self, device: torch.device, plan: Plan) -> Sequence[str]:
        """Return the call that lets the card's tensor cores multiply matrices of 32 bits, unless the user decided."""
        decided = getattr(torch.backends.cuda.matmul, "fp32_precision", "none") != "none"
        if plan.precision != "32-true" or decided or torch.get_float32_matmul_precision() != "highest":
            return []
        if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
            return []
        return [
            f"{device} has tensor cores that multiply float32 matrices several times faster at less precision (TF32). "
            f"To use them call {_MATMUL} before training."
        ]

    def explain(self, error: BaseException, device: torch.device, owners: Mapping[str, Mapping[str, Tensor]]) -> str:
        """Return what fills the card, where the error is that its memory is full."""
        # The allocator has a type for it; a driver's refusal, as of a library's work space, has only words.
        words = str(error).lower() if isinstance(error, RuntimeError) else ""
        if not isinstance(error, torch.OutOfMemoryError) and not ("cuda" in words and "out of memory" in words):
            return ""
        free, total = torch.cuda.mem_get_info(device)
        now, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        text = explain_memory(device, owners, max(now, torch.cuda.max_memory_allocated(device)), total)
        others, pieces = total - free - reserved, reserved - now
        if others > total // 10:
            text += f'\nOther processes hold up to {size(others)} of it: devices="{_IDLE}" takes the least used card.'
        if pieces > total // 10:
            text += f"\n{size(pieces)} are reserved in pieces: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."
        return text


def _in_use() -> bool:
    """Return whether this process has a CUDA context."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _instance() -> bool:
    """Return whether this process sees an instance of a divided card, of which CUDA gives a process one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-")


def _idle(spec: object, number: int, count: int) -> list[int]:
    """Return the least used cards: by memory, then utilisation, then index."""
    worlds = [kind().world() for kind in (TorchrunCluster, SlurmCluster) if kind.detect()]
    if any(world.size > 1 for world in worlds):
        rule = "each process would choose for itself, and a scheduler started several"
        raise refusal(spec, rule, f"{worlds[0].size} processes", "Set CUDA_VISIBLE_DEVICES for all of them.")
    cards = _numbered_by_torch(spec, count)
    if not 1 <= number <= len(cards):
        raise refusal(spec, "there must be as many cards", f"{len(cards)} here", f"Write {_IDLE}, or a smaller number.")
    order = sorted(range(len(cards)), key=lambda i: (cards[i].used // _NOISE, cards[i].busy, cards[i].used, i))
    return sorted(order[:number])


def _by_uuid(spec: object, uuids: list[str], count: int) -> list[int]:
    """Return the indices of cards by the first digits of their UUIDs; an instance is the one that is visible."""
    if uuids[0].startswith("MIG-"):
        if _instance() and uuids == [os.environ["CUDA_VISIBLE_DEVICES"].strip()]:
            return [0]
        rule = "an instance of a divided card (MIG) is chosen before Python starts, and a process uses one"
        got = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '(unset)')}"
        raise refusal(spec, rule, got, f"Run: export CUDA_VISIBLE_DEVICES={uuids[0]}")
    cards = _numbered_by_torch(spec, count)
    found = [[i for i, card in enumerate(cards) if card.uuid.startswith(uuid)] for uuid in uuids]
    if any(len(same) != 1 for same in found) or len({same[0] for same in found}) != len(found):
        there = ", ".join(card.uuid for card in cards)
        raise refusal(spec, "each UUID must name one card that this process sees", there, "Write one of these.")
    return [same[0] for same in found]


def _numbered_by_torch(spec: object, count: int) -> list[Any]:
    """Return the cards in torch's order.

    Raises:
        ValueError: If nvidia-smi does not list them, or CUDA numbers them by speed and nvidia-smi by place.
    """
    cards = visible(installed())
    if not cards or len(cards) != count:
        got = f"{len(cards)} cards of nvidia-smi, {count} of PyTorch"
        raise refusal(spec, "nvidia-smi must list the cards", got, "Write indices, such as devices=[0].")
    by_place = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if len({card.name for card in cards}) > 1 and not by_place:
        rule = "CUDA numbers cards of different kinds by speed, nvidia-smi by place"
        raise refusal(spec, rule, fix="Run: export CUDA_DEVICE_ORDER=PCI_BUS_ID")
    return list(cards)
