"""ModelCheckpoint: when to save, what to keep, how files are called."""
