"""From text to batches: corpora, tokenizers, token files, sampling order."""
