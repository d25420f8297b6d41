"""CAUSE."""
