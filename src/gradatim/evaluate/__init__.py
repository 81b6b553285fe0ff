"""Perplexity, bits per byte and sentence scores over the language-model protocol."""
