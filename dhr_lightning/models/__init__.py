"""Networks without Lightning."""
