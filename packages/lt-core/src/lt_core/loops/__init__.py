"""Run epochs, steps, evaluations and predictions."""
