"""Schedulers that start the processes of a run, and what they do with their jobs."""
