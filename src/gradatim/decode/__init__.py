"""Sampling, beam search and streaming over the language-model protocol."""
