"""Hugging Face directories (GPT-2, Llama, BERT), read and written without their library."""
