"""Pure, batched tensor functions."""
