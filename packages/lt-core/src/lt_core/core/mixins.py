"""The mixin for hyper-parameters, under the path that users' imports name."""

from lt_core.model.hparams import HyperparametersMixin

__all__ = ["HyperparametersMixin"]
