"""The file format: one tree, one file, no code."""
