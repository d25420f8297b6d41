"""Principal axes of a pretrained encoder."""
