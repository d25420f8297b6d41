"""What artifacts are made from, and whether that is still so."""
