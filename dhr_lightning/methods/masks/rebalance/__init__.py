"""The mask step of DHR alone."""
