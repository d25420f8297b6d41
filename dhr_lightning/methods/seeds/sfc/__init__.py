"""SFC: shared feature calibration."""
