"""Metrics on their way to the loggers: journal, senders, positions."""
