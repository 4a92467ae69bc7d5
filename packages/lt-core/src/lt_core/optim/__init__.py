"""The user's optimizers: read, wrapped, saved by name; several as one, by rules; groups joined."""

from typing import TYPE_CHECKING

from lt_interface.lazy import lazy

if TYPE_CHECKING:
    from lt_core.optim.by_rule import ByRule as ByRule
    from lt_core.optim.by_rule import Rule as Rule
    from lt_core.optim.merge import merge_groups as merge_groups
else:
    # Read when first asked for: the loop needs none of them.
    __all__, __getattr__, __dir__ = lazy(__name__, {"by_rule": "ByRule Rule", "merge": "merge_groups"})
