"""The base of callbacks, under the path that users' imports name."""

from lt_core.callback import Callback

__all__ = ["Callback"]
