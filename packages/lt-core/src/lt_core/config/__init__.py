"""The flags of the trainer: what they may be, and what they exclude."""
