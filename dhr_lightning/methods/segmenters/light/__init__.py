"""Light segmenter on stored features."""
