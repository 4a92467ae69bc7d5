"""How fast a device works through batches, samples and floating-point operations, and what it could do at most."""

from __future__ import annotations

from collections import deque

import torch

from lt_interface.errors import ConfigError, Problem

__all__ = ["Throughput", "get_available_flops"]

# Dense TFLOPS by the number format, as the makers' data sheets have them, the longest of matching names first:
# nvidia.com/en-us/data-center/{b200,h200,h100,a100,l40s,l40,l4,a40,a10,v100,t4}, the white papers "NVIDIA Ada GPU
# Architecture" and "NVIDIA Ampere GA102 GPU Architecture" (with 32-bit sums), aws.amazon.com/ec2/instance-types/g5.
# Where a sheet gives figures with sparsity, these are half of them.
PEAKS: dict[str, dict[str, float]] = {
    "b200": {"64": 37.0, "32": 75.0, "tf32": 1100.0, "16": 2250.0},
    "h200": {"64": 67.0, "32": 67.0, "tf32": 494.7, "16": 989.4},
    "h100 nvl": {"64": 60.0, "32": 60.0, "tf32": 417.5, "16": 835.5},
    "h100 pcie": {"64": 51.2, "32": 51.2, "tf32": 378.0, "16": 756.0},
    "h100": {"64": 67.0, "32": 67.0, "tf32": 494.7, "16": 989.4},
    "a100": {"64": 19.5, "32": 19.5, "tf32": 156.0, "16": 312.0},
    "l40s": {"32": 91.6, "tf32": 183.0, "16": 362.0},
    "l40": {"32": 90.5, "tf32": 90.5, "16": 181.0},
    "l4": {"32": 30.3, "tf32": 60.0, "16": 121.0},
    "a40": {"32": 37.4, "tf32": 74.8, "16": 149.7},
    "a10g": {"32": 35.0, "tf32": 35.0, "16": 70.0},
    "a10": {"32": 31.2, "tf32": 62.5, "16": 125.0},
    "rtx 4090": {"32": 82.6, "tf32": 82.6, "16": 165.2},
    "rtx 3090": {"32": 35.6, "tf32": 35.6, "16": 71.0},
    "v100-sxm": {"64": 7.8, "32": 15.7, "16": 125.0},
    "v100-pcie": {"64": 7.0, "32": 14.0, "16": 112.0},
    "t4": {"32": 8.1, "16": 65.0},
}


def get_available_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the floating-point operations a second that a device can do at most, or None where that is not known.

    Args:
        device: The device; only CUDA cards are known.
        dtype: The format of matrix products; ``torch.float32`` counts as TF32 where torch may use that.

    Example:
        >>> get_available_flops(torch.device("cpu"), torch.float32) is None
        True
    """
    if device.type != "cuda":
        return None
    name = f" {torch.cuda.get_device_name(device).lower()} "
    keys = {torch.float64: "64", torch.float32: "32", torch.float16: "16", torch.bfloat16: "16"}
    key = keys.get(dtype, "")
    peaks = next((peaks for card, peaks in PEAKS.items() if f" {card}" in name.replace("tesla", "")), {})
    if key == "32" and torch.get_float32_matmul_precision() != "highest":
        key = "tf32" if "tf32" in peaks else key
    return peaks[key] * 1e12 if key in peaks else None


class Throughput:
    """Rates over the newest entries of a running count.

    Args:
        available_flops: Floating-point operations a second that one device can do at most; None: no ``mfu``.
        world_size: How many devices work alike; with several the rates of all together are given, too.
        window_size: How many entries the rates are of.
        separator: What stands between the parts of a name.

    Raises:
        ConfigError: If the window is shorter than two.

    Example:
        >>> throughput = Throughput(available_flops=1e6, window_size=3)
        >>> for i in range(1, 4):
        ...     throughput.update(time=2.0 * i, batches=i, samples=8 * i, flops=1_000_000)
        >>> throughput.compute()["device/samples_per_sec"], throughput.compute()["device/mfu"]
        (4.0, 0.5)
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 2:
            where = f"Throughput(window_size={window_size!r})"
            raise ConfigError(Problem(where, "a rate needs a whole number of at least 2 entries", fix="Write 100."))
        self.available_flops, self.world_size, self.separator = available_flops, world_size, separator
        self._entries: deque[tuple[float, int, int, int | None, int | None]] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Add an entry.

        Args:
            time: Seconds since the beginning.
            batches: Batches so far.
            samples: Samples so far.
            lengths: Items so far, such as tokens.
            flops: Floating-point operations of this entry alone.

        Raises:
            ValueError: If time or a count is lower than before.
        """
        entry = (time, batches, samples, lengths, flops)
        if self._entries:
            for name, new, old in zip(
                ("time", "batches", "samples", "lengths"), entry, self._entries[-1], strict=False
            ):
                if new is not None and old is not None and new < old:
                    raise ValueError(f"Throughput.update: {name} counts from the beginning. Got {new} after {old}.")
        self._entries.append(entry)

    def compute(self) -> dict[str, float]:
        """Return the newest counts, and from the second entry on the rates, by name."""
        if not self._entries:
            return {}
        first, last = self._entries[0], self._entries[-1]
        found = {"time": last[0], "batches": float(last[1]), "samples": float(last[2])}
        if last[3] is not None:
            found["lengths"] = float(last[3])
        seconds = last[0] - first[0]
        if seconds <= 0:
            return found
        rates = {"batches": (last[1] - first[1]) / seconds, "samples": (last[2] - first[2]) / seconds}
        if last[3] is not None and first[3] is not None:
            rates["items"] = (last[3] - first[3]) / seconds
        flops = [entry[4] for entry in self._entries]
        if (known := [each for each in flops[1:] if each is not None]) and len(known) == len(flops) - 1:
            rates["flops"] = sum(known) / seconds
        device = f"device{self.separator}"
        found |= {f"{device}{name}_per_sec": rate for name, rate in rates.items()}
        if self.world_size > 1:
            found |= {f"{name}_per_sec": rate * self.world_size for name, rate in rates.items()}
        if "flops" in rates and self.available_flops:
            found[f"{device}mfu"] = rates["flops"] / self.available_flops
        return found

    def reset(self) -> None:
        """Forget all entries."""
        self._entries.clear()
