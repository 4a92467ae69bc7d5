"""Plugins that the core brings itself, registered through entry points like any other."""
