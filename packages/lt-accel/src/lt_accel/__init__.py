"""Train beyond 32 bits on one CPU: precisions, strategies and clusters, each found by its name."""

from lt_accel.precision.float8 import Float8Precision
from lt_accel.precision.mixed import BFloat16MixedPrecision, Float16MixedPrecision, MixedPrecision
from lt_accel.precision.quantized import BitsandbytesPrecision
from lt_accel.precision.transformer_engine import TransformerEnginePrecision
from lt_accel.version import __version__

__all__ = [
    "BFloat16MixedPrecision",
    "BitsandbytesPrecision",
    "Float8Precision",
    "Float16MixedPrecision",
    "MixedPrecision",
    "TransformerEnginePrecision",
    "__version__",
]
