"""MLflow: its logger, and what the logger is made of."""

from lt_loggers.mlflow.logger import MLFlowLogger

__all__ = ["MLFlowLogger"]
