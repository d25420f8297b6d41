"""Entropic optimal transport between cells and classes."""
