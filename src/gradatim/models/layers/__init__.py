"""Layers that several models share; each takes plain numbers and knows no config."""
