"""The table of hooks and who is called when."""
