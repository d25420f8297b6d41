"""Pseudo masks -> better pseudo masks."""
