"""Recorded results in, comparison out."""
