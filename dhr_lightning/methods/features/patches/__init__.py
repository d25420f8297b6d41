"""Whitened patches with a soft cluster code."""
