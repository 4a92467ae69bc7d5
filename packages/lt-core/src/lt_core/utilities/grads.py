"""Norms of gradients, under the path that users' imports name."""

from lt_core.optim.grads import grad_norm

__all__ = ["grad_norm"]
