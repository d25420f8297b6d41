"""Pseudo masks -> a trained segmenter."""
