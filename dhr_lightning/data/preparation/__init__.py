"""Benchmarks made ready: downloads, archives, prepared lists and masks."""
