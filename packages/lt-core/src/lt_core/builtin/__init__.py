"""Hold what the core brings itself, registered through entry points like any plugin."""
