"""MARS: a segmenter that completes what was rejected of its masks."""
