"""Shared layers against the equations written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gradatim.models.layers import core
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.core import attend
from gradatim.models.layers.dropout import drop_words, dropout, locked_dropout
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.init import Init, draw
from gradatim.models.layers.norm import norm_layer
from gradatim.models.layers.recurrence import Recurrence
from gradatim.models.layers.rotary import rotary_table, rotate
from gradatim.models.layers.task_head import TaskHead
from gradatim.parallel.observe import as_on_gpus

DOUBLE = torch.float64


def randomised(module, seed=0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("rotary", [False, True])
def test_attention_is_the_formula(heads, kv_heads, rotary):
    b, t, d, k = 2, 5, 16, 4
    layer = randomised(SelfAttention(d, heads, kv_heads, bias=True))
    x = torch.randn(b, t, d, dtype=DOUBLE)
    rotation = rotary_table(t, k, 100.0) if rotary else None
    rows = layer.qkv(x).view(b, t, kv_heads, heads // kv_heads + 2, k)
    expected = torch.zeros(b, t, heads, k, dtype=DOUBLE)
    for head in range(heads):
        group, place = divmod(head, heads // kv_heads)
        q, key, value = rows[:, :, group, place], rows[:, :, group, -2], rows[:, :, group, -1]  # b t k
        if rotation is not None:
            q, key = (rotate(part[:, :, None], rotation)[:, :, 0] for part in (q, key))
        scores = q @ key.transpose(1, 2) / math.sqrt(k)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        expected[:, :, head] = scores.softmax(-1) @ value
    torch.testing.assert_close(layer(x, rotation), layer.out(expected.flatten(2)))


def test_a_share_of_the_rows_is_a_smaller_attention():
    whole = randomised(SelfAttention(16, 4, 2, bias=False))
    x = torch.randn(2, 5, 16, dtype=DOUBLE)
    total = torch.zeros(2, 5, 16, dtype=DOUBLE)
    for rank in range(2):
        part = SelfAttention(16, 4, 2, bias=False).double()
        part.qkv.weight = torch.nn.Parameter(whole.qkv.weight.chunk(2, 0)[rank])
        part.out.weight = torch.nn.Parameter(whole.out.weight.chunk(2, 1)[rank])
        total += part(x)
    torch.testing.assert_close(total, whole(x))


def test_rotary_products_depend_on_distance_alone():
    table = rotary_table(32, 8, 10000.0)
    q, k = torch.randn(8, dtype=DOUBLE), torch.randn(8, dtype=DOUBLE)
    turned_q = rotate(q.expand(1, 32, 1, 8), table)[0, :, 0]
    turned_k = rotate(k.expand(1, 32, 1, 8), table)[0, :, 0]
    products = turned_q @ turned_k.T
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(32), rtol=1e-6, atol=0)


def test_feed_forwards_are_their_formulas():
    x = torch.randn(3, 4, 8, dtype=DOUBLE)
    plain = randomised(FeedForward(8, 12, "gelu", bias=True))
    u = plain.up(x)
    gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    torch.testing.assert_close(plain(x), plain.down(gelu))
    gated = randomised(FeedForward(8, 12, "swiglu", bias=False))
    g = gated.gate(x)
    torch.testing.assert_close(gated(x), gated.down(g * torch.sigmoid(g) * gated.up(x)))


def test_norms_are_their_formulas():
    x = torch.randn(3, 8, dtype=DOUBLE)
    layer, rms = randomised(norm_layer("layer", 8, 1e-5, bias=True)), randomised(norm_layer("rms", 8, 1e-5, bias=False))
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * rms.weight)


def written_out(cell: Recurrence, x, state):
    """The three recurrences, token by token, from their equations."""
    ys = []
    for x_t in x.unbind(1):
        h = state[0]
        from_x, from_h = x_t @ cell.weight_ih.T + cell.bias_ih, h @ cell.weight_hh.T + cell.bias_hh
        if cell.kind == "rnn":
            state = (torch.tanh(from_x + from_h),)
        elif cell.kind == "gru":
            (rx, zx, nx), (rh, zh, nh) = from_x.chunk(3, 1), from_h.chunk(3, 1)
            r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
            state = ((1 - z) * torch.tanh(nx + r * nh) + z * h,)
        else:
            i, f, g, o = (from_x + from_h).chunk(4, 1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            state = (torch.sigmoid(o) * torch.tanh(c), c)
        ys.append(state[0])
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_recurrences_are_their_equations(kind):
    cell = randomised(Recurrence(kind, 5, 4))
    x = torch.randn(3, 7, 5, dtype=DOUBLE)
    state = tuple(torch.randn(3, 4, dtype=DOUBLE) for _ in range(2 if kind == "lstm" else 1))
    y, after = cell(x, state)
    expected, expected_after = written_out(cell, x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after, expected_after)
    zeros = tuple(torch.zeros_like(part) for part in state)
    torch.testing.assert_close(cell(x)[0], written_out(cell, x, zeros)[0])


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_recurrences_pass_gradcheck(kind):
    cell = randomised(Recurrence(kind, 2, 3))
    x = torch.randn(2, 3, 2, dtype=DOUBLE, requires_grad=True)
    names = [name for name, _ in cell.named_parameters()]

    def function(x, *weights):
        y, after = torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x,))
        return (y, *after)

    assert torch.autograd.gradcheck(function, (x, *cell.parameters()))


def test_weight_drop_drops_recurrent_weights_in_training_alone():
    cell = randomised(Recurrence("lstm", 4, 4, weight_drop=0.999999))
    x = torch.randn(2, 6, 4, dtype=DOUBLE)
    without = Recurrence("lstm", 4, 4).double()
    without.load_state_dict(cell.state_dict())
    torch.testing.assert_close(cell.eval()(x)[0], without(x)[0])
    with torch.no_grad():
        without.weight_hh.zero_()
    torch.manual_seed(0)
    torch.testing.assert_close(cell.train()(x)[0], without(x)[0])
    half = Recurrence("lstm", 4, 4, weight_drop=0.5).double()
    half.load_state_dict(cell.state_dict())
    half(x)[0].sum().backward()
    dropped = (half.weight_hh.grad == 0).sum().item()
    assert 8 <= dropped <= 56  # of 64; each dropped weight has no gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(301, 33, 11), (7,), (1, 1), (0, 4)])
def test_dropout_drops_its_share_keeps_the_mean_and_lets_gradients_through_where_values_pass(dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.3, training=True)
    y.sum().backward()
    assert y.dtype == dtype and y.shape == x.shape
    passed = x.grad != 0
    scale = torch.tensor(65536 / round(0.7 * 65536), dtype=dtype)
    assert torch.equal(x.grad, passed.to(dtype) * scale)
    assert torch.equal(y.detach(), x.detach() * passed.to(dtype) * scale)
    if x.numel() > 10_000:
        assert passed.double().mean().item() == pytest.approx(0.7, abs=4 * (0.21 / x.numel()) ** 0.5)
        # No value knows of the next: four of them come from one draw.
        mask = passed.flatten().double() - passed.double().mean()
        for apart in range(1, 5):
            assert abs((mask[apart:] * mask[:-apart]).mean().item()) < 4 * 0.21 / x.numel() ** 0.5


@pytest.mark.parametrize(("share", "training"), [(0.0, True), (0.3, False)])
def test_dropout_that_drops_nothing_gives_the_values_themselves(share, training):
    x = torch.randn(3, 4)
    assert dropout(x, share, training) is x


@pytest.mark.parametrize("share", [1e-9, 0.001, 0.999, 1 - 1e-9])
def test_dropout_at_the_ends_of_its_range(share):
    torch.manual_seed(0)
    y = dropout(torch.ones(200_000), share, training=True)
    assert (y == 0).double().mean().item() == pytest.approx(share, abs=4e-4)
    assert torch.isfinite(y).all()


def test_dropout_is_the_same_after_the_same_seed_and_in_what_is_computed_again():
    x = torch.randn(40, 8, requires_grad=True)
    torch.manual_seed(5)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(5)
    again = checkpoint(lambda x: dropout(x, 0.5, training=True) ** 2, x, use_reentrant=False)
    assert torch.equal(first.detach() ** 2, again.detach())
    again.sum().backward()
    torch.testing.assert_close(x.grad, 2 * first.detach() * 2 * (first.detach() != 0))


def test_locked_dropout_has_one_mask_for_all_time_steps():
    torch.manual_seed(0)
    y = locked_dropout(torch.ones(8, 5, 100), 0.25, training=True)
    assert (y == y[:, :1]).all()
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert not (y[0] == y[1]).all()
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert (locked_dropout(torch.ones(2, 3, 4), 0.25, training=False) == 1).all()


def test_dropped_words_are_absent_as_a_whole():
    torch.manual_seed(0)
    rows = drop_words(torch.ones(1000, 4), 0.1, training=True)
    assert (rows == rows[:, :1]).all()
    assert (rows[:, 0] == 0).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert rows.max().item() == pytest.approx(1 / 0.9)


@pytest.mark.parametrize(
    "init", [Init("normal", 0.02), Init("uniform", 0.3), Init("constant", 0.0, fixed=(60, 130, 1.0))]
)
def test_a_part_of_the_rows_is_drawn_as_within_the_whole(init):
    whole = draw(init, "x", (200, 3), seed=1)
    for first, stop in [(0, 200), (0, 64), (50, 70), (64, 128), (150, 200), (199, 200)]:
        assert (draw(init, "x", (200, 3), seed=1, first=first, stop=stop) == whole[first:stop]).all()
    if init.kind != "constant":
        assert not (whole[:64] == whole[64:128]).any()
        assert (draw(init, "y", (200, 3), seed=1) != whole).all()
        assert (draw(init, "x", (200, 3), seed=2) != whole).all()
    else:
        assert whole[:, 0].tolist() == [0.0] * 60 + [1.0] * 70 + [0.0] * 70


class Kernels(TorchDispatchMode):
    """Types in which the fused kernels of attention are called."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "flash_attention" in str(func):
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_in_half_precision_is_computed_in_float32_on_a_cpu(low, kv_heads, masked):
    b, t, k = 2, 6, 8
    q, key, value = (torch.randn(b, heads, t, k, dtype=low, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    mask = torch.ones(b, 1, 1, t, dtype=torch.bool) if masked else None
    exact = [x.detach().float().requires_grad_() for x in (q, key, value)]
    expected = attend(*exact, mask, causal=not masked)
    expected.square().sum().backward()
    with Kernels() as seen, torch.autocast("cpu", low):
        y = attend(q, key, value, mask, causal=not masked)
        y.float().square().sum().backward()
    assert y.dtype == low and set(seen.types) == {torch.float32}
    assert torch.equal(y, expected.to(low))
    for given, same in zip((q, key, value), exact, strict=True):
        assert given.grad.dtype == low
        # The gradient that comes in was rounded, at 2^-8 or 2^-11 of its size.
        torch.testing.assert_close(given.grad.float(), same.grad, rtol=0.02, atol=0.02)


def test_long_attention_and_what_stands_for_other_hardware_stay_in_half_precision():
    q = torch.randn(1, 1, core.SHORT, 8, dtype=torch.bfloat16)
    with Kernels() as seen:
        attend(q, q, q, None, causal=True)
        attend(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], None, causal=True)
        with as_on_gpus():
            attend(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], None, causal=True)
    assert seen.types == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_a_row_read_by_its_mean_leaves_padding_out() -> None:
    head = randomised(TaskHead(6, 2, of_rows=True, pooler=False, bias=True, dropout=0.0, mean=True))
    hidden = torch.randn(3, 5, 6, dtype=DOUBLE)
    found = head(hidden, torch.tensor([5, 2, 0]))
    rows = [hidden[0].mean(0), hidden[1, :2].mean(0), torch.zeros(6, dtype=DOUBLE)]  # a missing choice
    expected = torch.stack(rows) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(found, expected)
