"""A look at a dataset before any long work."""
