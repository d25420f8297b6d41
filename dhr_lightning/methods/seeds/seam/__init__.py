"""SEAM: equivariant class activation maps."""
