"""Training spread over processes: tensor, sequence, pipeline and data parallelism on torch.distributed.

A layout never changes the mathematics: whatever (tp, pp, dp, …), losses, gradients and updated weights are those of
one process, to rounding. Nothing here knows a concrete model; what a model consists of stands in ``shapes/``.
"""
