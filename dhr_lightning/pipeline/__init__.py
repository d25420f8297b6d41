"""Recipes: which steps run, what they read, what is already there, and how the rest is made."""
