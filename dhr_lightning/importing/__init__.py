"""Files of other tools brought in as artifacts."""
