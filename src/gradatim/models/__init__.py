"""Models as plain mathematics: no file here knows of ranks, training loops or commands."""
