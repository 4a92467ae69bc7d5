"""The user's optimizers: read, wrapped, saved by name; several as one, by rules; groups joined."""

from lt_core.optim.by_rule import ByRule, Rule
from lt_core.optim.merge import merge_groups

__all__ = ["ByRule", "Rule", "merge_groups"]
