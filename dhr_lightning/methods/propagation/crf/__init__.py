"""Dense CRF."""
