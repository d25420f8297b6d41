"""The built-in dataset: synthetic scenes, drawn on first use."""
