"""Compute in other number formats than 32 bits."""
