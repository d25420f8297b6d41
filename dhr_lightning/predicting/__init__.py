"""Masks of new photos from a finished model: the command `segment` and the Python API."""
