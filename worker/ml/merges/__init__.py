"""Merges: one file each, and the table."""
