"""Train beyond 32 bits on one CPU: precisions, strategies and clusters, each found by its name."""

from lt_accel.precision.mixed import BFloat16MixedPrecision, Float16MixedPrecision, MixedPrecision
from lt_accel.version import __version__

__all__ = ["BFloat16MixedPrecision", "Float16MixedPrecision", "MixedPrecision", "__version__"]
