"""Light segmenter that rebalances its own masks."""
