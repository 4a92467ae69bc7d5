"""Summaries of models, under the path that users' imports name."""

from lt_core.model.summary import LayerRow, ModuleSummary, summarize
from lt_core.model.summary import human_count as get_human_readable_count

__all__ = ["LayerRow", "ModelSummary", "ModuleSummary", "get_human_readable_count", "summarize"]

ModelSummary = summarize  # called as a class in other code: ModelSummary(model, max_depth=1)
