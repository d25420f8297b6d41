"""Callbacks: writers, mask refresh, panels, guards."""
