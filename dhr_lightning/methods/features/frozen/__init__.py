"""Features of a frozen backbone, written once."""
