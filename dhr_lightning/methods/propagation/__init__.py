"""Class activation maps -> pseudo masks."""
