"""The loop and what surrounds it: optimizer, learning rate, checkpoints, signals, metrics."""
