"""The transforms of Winograd's F(2 x 2, 3 x 3) and F(4 x 4, 3 x 3), of tuples of tiles: one tile for each position.

They evaluate and interpolate polynomials at 0, 1, -1 and infinity (m = 2) or 0, p, -p, q, -q and infinity (m = 4) with
p = sqrt(1/2) and q = sqrt(2). These keep the error at half of that of the usual points 1 and 2: p q = 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr

P: constexpr = tl.constexpr(0.5**0.5)
Q: constexpr = tl.constexpr(2.0**0.5)


@triton.jit
def input_line(d, M: constexpr):
    """B^T d: m + 2 values of as many."""
    if M == 2:
        return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[3] - d[1]
    else:
        a = d[4] - 2.0 * d[2]
        b = (d[3] - 2.0 * d[1]) * P
        c = d[4] - 0.5 * d[2]
        e = (d[3] - 0.5 * d[1]) * Q
        return d[0] - 2.5 * d[2] + d[4], a + b, a - b, c + e, c - e, d[1] - 2.5 * d[3] + d[5]


@triton.jit
def filter_line(g, M: constexpr):
    """G g: m + 2 values of 3."""
    if M == 2:
        a = 0.5 * (g[0] + g[2])
        b = 0.5 * g[1]
        return g[0], a + b, a - b, g[2]
    else:
        a = -1.0 / 1.5 * (g[0] + 0.5 * g[2])
        b = g[1] * (-1.0 / 1.5 * P)
        c = 1.0 / 6.0 * (g[0] + 2.0 * g[2])
        e = g[1] * (1.0 / 6.0 * Q)
        return g[0], a + b, a - b, c + e, c - e, g[2]


@triton.jit
def output_line(m, M: constexpr):
    """A^T m: m values of m + 2."""
    if M == 2:
        return m[0] + m[1] + m[2], m[1] - m[2] + m[3]
    else:
        a = m[1] + m[2]
        b = m[1] - m[2]
        c = m[3] + m[4]
        e = m[3] - m[4]
        return m[0] + a + c, b * P + e * Q, 0.5 * a + 2.0 * c, b * (0.5 * P) + e * (2.0 * Q) + m[5]


@triton.jit
def output_gradient_line(y, M: constexpr):
    """A y: m + 2 values of m."""
    if M == 2:
        return y[0], y[0] + y[1], y[0] - y[1], y[1]
    else:
        a = y[0] + 0.5 * y[2]
        b = (y[1] + 0.5 * y[3]) * P
        c = y[0] + 2.0 * y[2]
        e = (y[1] + 2.0 * y[3]) * Q
        return y[0], a + b, a - b, c + e, c - e, y[3]


@triton.jit
def filter_gradient_line(m, M: constexpr):
    """G^T m: 3 values of m + 2."""
    if M == 2:
        a = 0.5 * (m[1] + m[2])
        return m[0] + a, 0.5 * (m[1] - m[2]), a + m[3]
    else:
        a = -1.0 / 1.5 * (m[1] + m[2])
        b = (m[1] - m[2]) * (-1.0 / 1.5 * P)
        c = 1.0 / 6.0 * (m[3] + m[4])
        e = (m[3] - m[4]) * (1.0 / 6.0 * Q)
        return m[0] + a + c, b + e, 0.5 * a + 2.0 * c + m[5]


@triton.jit
def transform(x, line: constexpr, SIDE: constexpr, M: constexpr):
    """`line` of each row of the square x, a tuple of SIDE x SIDE in row order, then of each column of the result."""
    rows = ()
    for i in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
        rows += line(x[i * SIDE : (i + 1) * SIDE], M)
    NEW: constexpr = len(rows) // SIDE
    columns = ()
    for j in tl.static_range(NEW):  # pyright: ignore[reportGeneralTypeIssues]
        columns += line(rows[j::NEW], M)
    square = ()
    for k in tl.static_range(NEW):  # pyright: ignore[reportGeneralTypeIssues]
        square += columns[k::NEW]
    return square
