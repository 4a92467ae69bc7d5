"""Accelerators: one kind of device each."""
