"""One call of the trainer, from the flags to the loop and back."""
