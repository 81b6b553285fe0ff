"""The HTTP API over a run: OpenAI's completions, a page to try it, one model and one generation at a time."""
