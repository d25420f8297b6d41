"""Weakly-supervised semantic segmentation from image tags: CAM, MARS, DHR as a Lightning pipeline."""
