"""The mask step of DHR on stored features."""
