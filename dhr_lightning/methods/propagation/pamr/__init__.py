"""Pixel-adaptive mask refinement."""
