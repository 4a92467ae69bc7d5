"""What a run counts, holds and agrees on."""
