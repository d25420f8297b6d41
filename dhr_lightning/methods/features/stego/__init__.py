"""STEGO."""
