"""The user's optimizers: read, wrapped, saved by name."""
