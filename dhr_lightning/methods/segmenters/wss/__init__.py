"""Segmenter on fixed masks."""
