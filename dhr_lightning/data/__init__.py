"""Datasets, transforms and the shared datamodule."""
