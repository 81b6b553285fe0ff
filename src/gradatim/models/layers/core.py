"""softmax(q kᵀ / √head_dim) v, the core of attention (Vaswani et al., 2017, equation 1), by PyTorch's fused kernels.

On CPUs those kernels lose more on turning numbers into bf16 and back than the products gain where rows are short:
forward and backward over 28 to 128 keys took 1.4 to 2.8 times as long as in float32, over 256 as long (one core of an
AMD EPYC with AVX-512; with tiles for bf16, an Intel Xeon with AMX, 1.3 to 3.4 times: ``benchmarks/attention_core.py``).
There, half precision ends before the core and begins again behind it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SHORT = 256
"""Keys from which on half precision is as fast on a CPU."""


def computed_in_full(q: Tensor, k: Tensor) -> bool:
    """Whether a core of such queries and keys is computed in float32, though it was given half precision."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return half and q.device.type == "cpu" and k.shape[2] < SHORT


def attend(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b kv all k"],
    v: Float[Tensor, "b kv all k"],
    mask: Bool[Tensor, "*b t all"] | None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b h t k"]:
    """Values by weight, in the type of the queries.

    Args:
        mask: true where a query may see a key.
        causal: without a mask, query i sees keys up to i.
        dropout: the share of weights that is dropped.
    """
    if not computed_in_full(q, k):
        return fused(q, k, v, mask, causal, dropout)
    with torch.autocast("cpu", enabled=False):
        return fused(q.float(), k.float(), v.float(), mask, causal, dropout).to(q.dtype)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """The same by PyTorch's kernel. That of CPUs has no dropout: where it is asked for, scores are kept in memory."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, enable_gqa=grouped
    )
