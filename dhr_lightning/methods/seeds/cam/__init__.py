"""CAM of a classifier."""
