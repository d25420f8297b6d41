"""CAM of a light head on stored features."""
