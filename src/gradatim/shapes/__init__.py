"""What an architecture is, without torch: parameters with shape and split, matmuls, FLOPs."""
