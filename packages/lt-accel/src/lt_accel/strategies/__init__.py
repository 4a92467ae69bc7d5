"""Strategies beyond one device."""
