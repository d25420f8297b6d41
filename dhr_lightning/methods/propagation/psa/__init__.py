"""PSA: features in which pixels of one class are alike."""
