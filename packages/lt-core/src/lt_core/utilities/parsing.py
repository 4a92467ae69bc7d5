"""Hyper-parameters as attributes, under the path that users' imports name."""

from lt_core.model.hparams import AttributeDict

__all__ = ["AttributeDict"]
