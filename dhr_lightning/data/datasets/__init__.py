"""Readers of datasets: images, tags and masks of a split."""
