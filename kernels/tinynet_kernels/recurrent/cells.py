"""The arithmetic of one step of an RNN, LSTM or GRU cell and of its derivative.

Every block is [batch, units] in fp32. Pre-activations come in, so that what is saved in 16 bits loses the least.

    RNN    h = tanh(a) or relu(a)
    LSTM   c = s(f) c' + s(i) tanh(g),  h = s(o) tanh(c)                 gates in the order i, f, g, o
    GRU    h = n + z (h' - n),  n = tanh(a_n + s(r) q),  q = W_hn h' + b_hn   gates in the order r, z, n

Source: the equations of torch.nn.RNN, LSTM and GRU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tinynet_kernels.activation import sigmoid, tanh
from tinynet_kernels.constants import constexpr


@triton.jit
def rnn_cell(a, RELU: constexpr):
    """h of the pre-activation."""
    if RELU:
        return tl.where(a <= 0, 0.0, a)  # NaN stays NaN
    else:
        return tanh(a)


@triton.jit
def rnn_cell_gradient(dh, h, RELU: constexpr):
    """da, from the output h."""
    if RELU:
        return tl.where(h <= 0, 0.0, dh)
    else:
        return dh * (1.0 - h * h)


@triton.jit
def lstm_cell(i, f, g, o, c):
    """(c, h) of four pre-activations and the cell state before."""
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return c, sigmoid(o) * tanh(c)


@triton.jit
def lstm_cell_gradient(dh, dc, i, f, g, o, c):
    """(di, df, dg, do, dc before) from dh, dc, the four pre-activations and the cell state before."""
    i = sigmoid(i)
    f = sigmoid(f)
    g = tanh(g)
    o = sigmoid(o)
    tanh_c = tanh(f * c + i * g)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return di, df, dg, do, dc * f


@triton.jit
def gru_cell(r, z, n, q, h):
    """h of the pre-activations r and z, the input's part n, q = W_hn h + b_hn, and the state before."""
    n = tanh(n + sigmoid(r) * q)
    return n + sigmoid(z) * (h - n)


@triton.jit
def gru_cell_gradient(dh, r, z, n, q, h):
    """(dr, dz, dn, dq, what reaches the state before directly) from dh and what `gru_cell` was given."""
    r = sigmoid(r)
    z = sigmoid(z)
    n = tanh(n + r * q)
    dn = dh * (1.0 - z) * (1.0 - n * n)
    dz = dh * (h - n) * z * (1.0 - z)
    dr = dn * q * r * (1.0 - r)
    return dr, dz, dn, dn * r, dh * z
