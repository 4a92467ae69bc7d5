"""Warnings, and how to silence those of what may be meant."""

from __future__ import annotations

import warnings

from lt_core.notices import PossibleUserWarning

__all__ = ["PossibleUserWarning", "disable_possible_user_warnings"]


def disable_possible_user_warnings(module: str = "") -> None:
    """Silence warnings of what may be meant, as ``POSSIBLE_USER_WARNINGS=off`` does.

    Args:
        module: A regular expression: only those that point at modules of such a name.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)
