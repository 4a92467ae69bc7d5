"""The base of profilers, under the name that Lightning's programs import."""

from lt_core.profilers.base import Profiler

__all__ = ["Profiler"]
