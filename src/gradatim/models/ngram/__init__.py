"""Counting word sequences and smoothing the counts."""
