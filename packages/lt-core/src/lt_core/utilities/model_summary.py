"""Summaries of models, under the path that users' imports name."""

from lt_core.model.summary import LayerRow, ModuleSummary, summarize

__all__ = ["LayerRow", "ModelSummary", "ModuleSummary", "summarize"]

ModelSummary = summarize  # called as a class in other code: ModelSummary(model, max_depth=1)
