"""Formats of annotation tools and trainers: a file each, which writes masks and reads them again."""
