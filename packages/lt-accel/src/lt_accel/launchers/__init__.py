"""Launchers: start the ranks of a run in processes of their own."""
