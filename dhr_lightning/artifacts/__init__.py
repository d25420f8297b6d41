"""Disk format of the files that stages hand to each other."""
