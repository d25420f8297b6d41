"""Image tags -> class activation maps."""
