"""Leopart."""
