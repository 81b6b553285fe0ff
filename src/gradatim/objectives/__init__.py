"""Batch in, named (sum, count) terms out."""
