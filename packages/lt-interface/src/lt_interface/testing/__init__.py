"""Test a plugin against the interface: subclass a suite, name the plugin, run pytest."""
