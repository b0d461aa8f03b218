"""Kernels as tutorials and libraries write them for GPUs; nothing in them was chosen for a CPU.

They follow Triton's tutorials and the common style of kernel libraries: a program per row or tile, masked loads, sizes
and strides at run time.
"""

# Triton types a kernel's constexpr parameters as constexpr, and takes plain values for them.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice


@triton.jit
def add_kernel(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    tl.store(z_ptr + offset, tl.load(x_ptr + offset, mask=mask) + tl.load(y_ptr + offset, mask=mask), mask=mask)


@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    x = tl.load(x_ptr + offset, mask=mask).to(tl.float32)
    y = 0.5 * x * (1 + libdevice.erf(x * 0.7071067811865476))
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_kernel(x_ptr, y_ptr, rows, cols, stride, BLOCK: tl.constexpr):
    """A program computes every num_programs-th row, each in one tile."""
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        offset = tl.arange(0, BLOCK)
        mask = offset < cols
        x = tl.load(x_ptr + row * stride + offset, mask=mask, other=-float("inf")).to(tl.float32)
        exponential = tl.exp(x - tl.max(x, axis=0))
        y = exponential / tl.sum(exponential, axis=0)
        tl.store(y_ptr + row * stride + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Tiles in groups of rows, so that neighbors share operands; rows and columns past the end wrap around."""
    program = tl.program_id(0)
    programs_m, programs_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = program // (GROUP * programs_n)
    first = group * GROUP
    size = min(programs_m - first, GROUP)
    tile_m = first + (program % (GROUP * programs_n)) % size
    tile_n = (program % (GROUP * programs_n)) // size
    row = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)) % M
    col = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)) % N
    depth = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + row[:, None] * stride_am + depth[None, :] * stride_ak
    b_ptrs = b_ptr + depth[:, None] * stride_bk + col[None, :] * stride_bn
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, tl.cdiv(K, BLOCK_K)):
        a = tl.load(a_ptrs, mask=depth[None, :] < K - step * BLOCK_K, other=0.0)
        b = tl.load(b_ptrs, mask=depth[:, None] < K - step * BLOCK_K, other=0.0)
        total = tl.dot(a, b, total)
        a_ptrs += BLOCK_K * stride_ak
        b_ptrs += BLOCK_K * stride_bk
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    c_ptrs = c_ptr + stride_cm * row[:, None] + stride_cn * col[None, :]
    tl.store(c_ptrs, total.to(c_ptr.dtype.element_ty), mask=(row[:, None] < M) & (col[None, :] < N))


@triton.jit
def layer_norm_kernel(x_ptr, y_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, cols, eps, BLOCK: tl.constexpr):
    """A program per row, in tiles of BLOCK: mean, then variance, then the result."""
    row = tl.program_id(0)
    x_ptr += row * cols
    y_ptr += row * cols
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + offset, mask=offset < cols, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / cols
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offset, mask=offset < cols, other=0.0).to(tl.float32)
        x = tl.where(offset < cols, x - mean, 0.0)
        total += x * x
    rstd = 1 / tl.sqrt(tl.sum(total, axis=0) / cols + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, cols, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        mask = offset < cols
        w, b = tl.load(w_ptr + offset, mask=mask), tl.load(b_ptr + offset, mask=mask)
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + offset, ((x - mean) * rstd * w + b).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm_backward_kernel(
    dx_ptr, dy_ptr, dw_ptr, db_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, rows, cols, BLOCK: tl.constexpr
):
    """A program per group of rows, each in one tile; partial sums of dw and db [programs, cols]."""
    program = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    mask = offset < cols
    w = tl.load(w_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    dw, db = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        x = tl.load(x_ptr + row * cols + offset, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * cols + offset, mask=mask, other=0.0).to(tl.float32)
        mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
        normalized = tl.where(mask, (x - mean) * rstd, 0.0)
        weighted = tl.where(mask, w * dy, 0.0)
        c1 = tl.sum(normalized * weighted, axis=0) / cols
        c2 = tl.sum(weighted, axis=0) / cols
        dx = (weighted - (normalized * c1 + c2)) * rstd
        tl.store(dx_ptr + row * cols + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        dw += dy * normalized
        db += dy
    tl.store(dw_ptr + program * cols + offset, dw, mask=mask)
    tl.store(db_ptr + program * cols + offset, db, mask=mask)


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, N, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Causal attention with a running softmax (Dao 2023); q, k, v, o: [heads, N, D]."""
    head = tl.program_id(1).to(tl.int64) * N * D
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col, feature = tl.arange(0, BLOCK_N), tl.arange(0, D)
    q = tl.load(q_ptr + head + row[:, None] * D + feature[None, :], mask=row[:, None] < N, other=0.0)
    largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    output = tl.zeros([BLOCK_M, D], tl.float32)
    for start in range(0, (tl.program_id(0) + 1) * BLOCK_M, BLOCK_N):
        key = start + col
        k = tl.load(k_ptr + head + key[None, :] * D + feature[:, None], mask=key[None, :] < N, other=0.0)
        v = tl.load(v_ptr + head + key[:, None] * D + feature[None, :], mask=key[:, None] < N, other=0.0)
        score = tl.dot(q, k) * (scale * 1.4426950408889634)
        score = tl.where((row[:, None] >= key[None, :]) & (key[None, :] < N), score, -1e30)
        new = tl.maximum(largest, tl.max(score, axis=1))
        weight = tl.exp2(score - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(weight, axis=1)
        output = tl.dot(weight.to(v.dtype), v, output * shrink[:, None])
        largest = new
    tl.store(lse_ptr + tl.program_id(1) * N + row, largest + tl.log2(total), mask=row < N)
    output = output / total[:, None]
    place = o_ptr + head + row[:, None] * D + feature[None, :]
    tl.store(place, output.to(o_ptr.dtype.element_ty), mask=row[:, None] < N)


@triton.jit
def attention_gradient_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, N, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys, from all queries that see it. N is a multiple of both tiles."""
    head = tl.program_id(1).to(tl.int64) * N * D
    key = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    feature = tl.arange(0, D)
    k = tl.load(k_ptr + head + key[:, None] * D + feature[None, :])
    v = tl.load(v_ptr + head + key[:, None] * D + feature[None, :])
    dk, dv = tl.zeros([BLOCK_N, D], tl.float32), tl.zeros([BLOCK_N, D], tl.float32)
    for start in range((tl.program_id(0) * BLOCK_N) // BLOCK_M * BLOCK_M, N, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        q = tl.load(q_ptr + head + row[:, None] * D + feature[None, :])
        do = tl.load(do_ptr + head + row[:, None] * D + feature[None, :])
        lse = tl.load(lse_ptr + tl.program_id(1) * N + row)
        delta = tl.load(delta_ptr + tl.program_id(1) * N + row)
        weight = tl.exp2(tl.dot(k, tl.trans(q)) * (scale * 1.4426950408889634) - lse[None, :])
        weight = tl.where(row[None, :] >= key[:, None], weight, 0.0)
        dv = tl.dot(weight.to(do.dtype), do, dv)
        ds = weight * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    place = key[:, None] * D + feature[None, :]
    tl.store(dk_ptr + head + place, (dk * scale).to(dk_ptr.dtype.element_ty))
    tl.store(dv_ptr + head + place, dv.to(dv_ptr.dtype.element_ty))


@triton.jit
def attention_query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, N, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries, from all keys that it sees. N is a multiple of both tiles."""
    head = tl.program_id(1).to(tl.int64) * N * D
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tl.arange(0, D)
    place = row[:, None] * D + feature[None, :]
    q, do = tl.load(q_ptr + head + place), tl.load(do_ptr + head + place)
    lse = tl.load(lse_ptr + tl.program_id(1) * N + row)
    delta = tl.load(delta_ptr + tl.program_id(1) * N + row)
    dq = tl.zeros([BLOCK_M, D], tl.float32)
    for start in range(0, (tl.program_id(0) + 1) * BLOCK_M, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + head + key[:, None] * D + feature[None, :])
        v = tl.load(v_ptr + head + key[:, None] * D + feature[None, :])
        weight = tl.exp2(tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634) - lse[:, None])
        weight = tl.where(row[:, None] >= key[None, :], weight, 0.0)
        ds = weight * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    tl.store(dq_ptr + head + place, (dq * scale).to(dq_ptr.dtype.element_ty))


@triton.jit
def sort_kernel(x_ptr, y_ptr, COLS: tl.constexpr):
    offset = tl.program_id(0) * COLS + tl.arange(0, COLS)
    tl.store(y_ptr + offset, tl.sort(tl.load(x_ptr + offset)))


@triton.jit
def histogram_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(x_ptr + offset, mask=offset < n, other=0), BINS, mask=offset < n)
    tl.atomic_add(y_ptr + tl.arange(0, BINS), counts)


def few_programs(rows: int) -> int:
    """The grid of a kernel whose programs loop over rows: a program per multiprocessor (on a CPU, per thread)."""
    properties = triton.runtime.driver.active.utils.get_device_properties(0)
    return min(rows, properties["multiprocessor_count"])


def add(x: Tensor, y: Tensor) -> Tensor:
    z = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, z, x.numel(), BLOCK=1024)
    return z


def gelu(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), BLOCK=1024)
    return y


def softmax(x: Tensor) -> Tensor:
    rows, cols = x.shape
    y = torch.empty_like(x)
    softmax_kernel[(few_programs(rows),)](x, y, rows, cols, cols, BLOCK=triton.next_power_of_2(cols))
    return y


def matmul(a: Tensor, b: Tensor) -> Tensor:
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty(M, N, device=a.device, dtype=a.dtype)
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}
    grid = (triton.cdiv(M, tile["BLOCK_M"]) * triton.cdiv(N, tile["BLOCK_N"]),)
    matmul_kernel[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), *c.stride(), **tile, GROUP=8)
    return c


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the mean and the reciprocal standard deviation of each row."""
    rows, cols = x.shape
    y, mean, rstd = torch.empty_like(x), *(torch.empty(rows, device=x.device) for _ in range(2))
    block = min(4096, triton.next_power_of_2(cols))
    layer_norm_kernel[(rows,)](x, y, weight, bias, mean, rstd, cols, 1e-5, BLOCK=block)
    return y, mean, rstd


def layer_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
    """Gradients by x, weight and bias."""
    rows, cols = x.shape
    dx, programs = torch.empty_like(x), few_programs(rows)
    dw, db = (torch.empty(programs, cols, device=x.device) for _ in range(2))
    block = triton.next_power_of_2(cols)
    layer_norm_backward_kernel[(programs,)](dx, dy, dw, db, x, weight, mean, rstd, rows, cols, BLOCK=block)
    return dx, dw.sum(0).to(x.dtype), db.sum(0).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention of [heads, N, D], and the logarithm to base 2 of each row's denominator."""
    heads, N, D = q.shape
    o, lse = torch.empty_like(q), torch.empty(heads, N, device=q.device)
    grid = (triton.cdiv(N, 64), heads)
    attention_kernel[grid](q, k, v, o, lse, N, 1 / math.sqrt(D), D=D, BLOCK_M=64, BLOCK_N=64)
    return o, lse


def attention_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
    """Gradients by q, k and v."""
    heads, N, D = q.shape
    delta = (do.float() * o.float()).sum(-1)
    dq, dk, dv = (torch.empty_like(q) for _ in range(3))
    grid, scale = (N // 64, heads), 1 / math.sqrt(D)
    tile = {"D": D, "BLOCK_M": 64, "BLOCK_N": 64}
    attention_gradient_kernel[grid](q, k, v, do, lse, delta, dk, dv, N, scale, **tile)
    attention_query_gradient_kernel[grid](q, k, v, do, lse, delta, dq, N, scale, **tile)
    return dq, dk, dv


def sort(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    sort_kernel[(x.shape[0],)](x, y, COLS=x.shape[1])
    return y


def histogram(x: Tensor, bins: int) -> Tensor:
    y = torch.zeros(bins, device=x.device, dtype=torch.int32)
    histogram_kernel[(triton.cdiv(x.numel(), 4096),)](x, y, x.numel(), BLOCK=4096, BINS=bins)
    return y
