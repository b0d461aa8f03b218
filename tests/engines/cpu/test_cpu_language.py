# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
"""Operations of the language that tinynet's own kernels do not use: maps, scaled products, fp8, directed rounding."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from tinynet_engines.cpu.elements import literal

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@triton.jit
def selu_element(x, scale):
    if x > 0:
        if x > 1.0:
            return x * scale, 2
        return x, 1
    return scale * (tl.exp(x) - 1), 0


@triton.jit
def halvings(x, count):
    steps = count
    while x > 1.0:
        x = x * 0.5
        steps += 1
    for _ in range(0, count):
        x += 1.0
    return x, steps


@triton.jit
def swap_neighbors(x0, x1, y0, y1):
    return x1, x0, y0 + y1, y0 - y1


@triton.jit
def map_kernel(x_ptr, count_ptr, y_ptr, n_ptr, ROWS: tl.constexpr, COLS: tl.constexpr, WHAT: tl.constexpr):
    place = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    x = tl.load(x_ptr + place)
    count = tl.load(count_ptr + place)
    if WHAT == "branches":
        y, n = tl.map_elementwise(selu_element, x, 3.0 + x * 0)
    elif WHAT == "loops":
        y, n = tl.map_elementwise(halvings, x, count)
    else:
        y, n = tl.map_elementwise(swap_neighbors, x, count, pack=2)
    tl.store(y_ptr + place, y)
    tl.store(n_ptr + place, n)


def _map(x: torch.Tensor, count: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    y, n = torch.empty_like(x), torch.empty_like(count)
    map_kernel[(1,)](x, count, y, n, ROWS=4, COLS=32, WHAT=what)
    return y, n


def test_a_function_of_elements_with_branches_and_loops() -> None:
    x, count = torch.randn(4, 32) * 3, torch.randint(0, 5, (4, 32), dtype=torch.int32)
    y, n = _map(x, count, "branches")
    expected = torch.where(x > 1, 3 * x, torch.where(x > 0, x, 3 * (x.exp() - 1)))
    torch.testing.assert_close(y, expected)
    assert torch.equal(n, (x > 0).int() + (x > 1).int())

    y, n = _map(x, count, "loops")
    halves = torch.where(x > 1, torch.ceil(torch.log2(x)), 0).nan_to_num(0)
    torch.testing.assert_close(y, x / 2**halves + count)
    assert torch.equal(n, (halves + count).int())


def test_a_function_of_several_neighbors() -> None:
    x, count = torch.randn(4, 32), torch.randint(0, 9, (4, 32), dtype=torch.int32)
    y, n = _map(x, count, "neighbors")
    assert torch.equal(y, x.view(4, 16, 2).flip(2).reshape(4, 32))
    left, right = count[:, ::2], count[:, 1::2]
    assert torch.equal(n, torch.stack([left + right, left - right], 2).reshape(4, 32))


@triton.jit
def scaled_product_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr, A_COLS: tl.constexpr, B_ROWS: tl.constexpr, B_COLS: tl.constexpr,
    B_PACKED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    m, n = tl.arange(0, M), tl.arange(0, N)
    group = tl.arange(0, K // GROUP)
    a = tl.load(a_ptr + m[:, None] * A_COLS + tl.arange(0, A_COLS)[None, :])
    b = tl.load(b_ptr + tl.arange(0, B_ROWS)[:, None] * B_COLS + tl.arange(0, B_COLS)[None, :])
    a_scale = None
    if a_scale_ptr is not None:
        a_scale = tl.load(a_scale_ptr + m[:, None] * (K // GROUP) + group[None, :])
    b_scale = tl.load(b_scale_ptr + n[:, None] * (K // GROUP) + group[None, :])
    ones = tl.full((M, N), 1.0, tl.float32)
    c = tl.dot_scaled(a, a_scale, A_FORMAT, b, b_scale, B_FORMAT, acc=ones, rhs_k_pack=B_PACKED)
    tl.store(c_ptr + m[:, None] * N + n[None, :], c)


FOUR_BITS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _operand(form: str, rows: int, columns: int, packed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An operand in memory, and its numbers; 4-bit numbers are packed along the dimension `packed`."""
    if form in ("bf16", "fp16"):
        data = torch.randn(rows, columns).to({"bf16": torch.bfloat16, "fp16": torch.float16}[form])
        return data, data.double()
    if form == "e2m1":
        code = torch.randint(0, 16, (rows, columns))
        low, high = code.unflatten(packed, (-1, 2)).unbind(packed + 1)
        return (low + 16 * high).to(torch.uint8), FOUR_BITS[code].double()
    data = torch.randn(rows, columns).to({"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[form])
    return data, data.double()


@pytest.mark.parametrize(
    "a_format, b_format, along_k",
    [("e4m3", "e5m2", True), ("e2m1", "e2m1", True), ("e5m2", "e2m1", False), ("bf16", "e4m3", True)],
)
def test_products_in_microscaling_formats(a_format: str, b_format: str, along_k: bool) -> None:
    M, N, K = 16, 32, 64
    a, a_numbers = _operand(a_format, M, K, packed=1)
    b, b_numbers = _operand(b_format, K, N, packed=0 if along_k else 1)
    a_scale, b_scale = (torch.randint(120, 134, (size, K // 32)).to(torch.uint8) for size in (M, N))
    c = torch.empty(M, N)
    scaled = a_format != "bf16"
    scaled_product_kernel[(1,)](
        a, a_scale if scaled else None, b, b_scale, c, M=M, N=N, K=K, A_FORMAT=a_format, B_FORMAT=b_format,
        A_COLS=a.shape[1], B_ROWS=b.shape[0], B_COLS=b.shape[1], B_PACKED=along_k, GROUP=32,
    )  # fmt: skip
    a_factors, b_factors = (2.0 ** (scale.double() - 127).repeat_interleave(32, 1) for scale in (a_scale, b_scale))
    expected = (a_numbers * (a_factors if scaled else 1)) @ (b_numbers * b_factors.T) + 1
    torch.testing.assert_close(c.double(), expected, rtol=1e-5, atol=1e-4)


@triton.jit
def convert_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y_ptr + place, tl.load(x_ptr + place).to(y_ptr.dtype.element_ty))


def _converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    convert_kernel[(1,)](x, y, BLOCK=x.numel())
    return y


@pytest.mark.parametrize(
    "dtype, wide",
    [
        *((dtype, torch.float32) for dtype in FP8),
        (FP8[0], torch.float16),
        (FP8[2], torch.bfloat16),
        (FP8[3], torch.float64),
    ],
)
def test_every_value_of_8_bits_converts_as_in_pytorch(dtype: torch.dtype, wide: torch.dtype) -> None:
    x = torch.arange(256).to(torch.uint8).view(dtype)
    y = _converted(x, wide)
    torch.testing.assert_close(y, x.to(wide), rtol=0, atol=0, equal_nan=True)
    number = ~y.isnan()
    assert torch.equal(y[number].signbit(), x.to(wide)[number].signbit())
    back = _converted(y, dtype)
    assert torch.equal(back.view(torch.uint8)[number], x.view(torch.uint8)[number])
    assert back.float()[~number].isnan().all()


@pytest.mark.parametrize("dtype", FP8)
def test_rounding_to_8_bits(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.cat([torch.randn(1021) * scale for scale in (1e-5, 1e-2, 1, 100)])
    x = torch.cat([x, torch.tensor([0.0, -0.0, math.nan, 1e-12, -1e-12, largest, -largest, 0.5 * largest]), x[:4]])
    x = x.clamp(-largest, largest)  # what is larger, PyTorch's versions convert to different values
    y = _converted(x, dtype)
    number = ~x.isnan()
    assert torch.equal(y.view(torch.uint8)[number], x.to(dtype).view(torch.uint8)[number])
    assert y.float()[~number].isnan().all()


@triton.jit
def fp8_kernel(x_ptr, y_ptr, z_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + place), tl.load(y_ptr + place)
    constant = tl.full((BLOCK,), 1.75, tl.float32).to(x_ptr.dtype.element_ty)
    tl.store(z_ptr + place, tl.where(x > y, x, y))
    tl.store(z_ptr + BLOCK + place, x + y)
    tl.store(z_ptr + 2 * BLOCK + place, (tl.abs(x).to(tl.float32) * -2.0).to(x_ptr.dtype.element_ty))
    tl.store(z_ptr + 3 * BLOCK + place, constant)


@pytest.mark.parametrize("dtype", FP8)
def test_arithmetic_of_8_bits(dtype: torch.dtype) -> None:
    x, y = torch.randn(256).to(dtype), torch.randn(256).to(dtype)
    z = torch.empty(4, 256, dtype=dtype)
    fp8_kernel[(1,)](x, y, z, BLOCK=256)
    a, b = x.float(), y.float()
    expected = torch.stack([torch.maximum(a, b), a + b, -a.abs() * 2, torch.full((256,), 1.75)]).to(dtype)
    assert torch.equal(z.float(), expected.float())


@pytest.mark.parametrize("dtype, element", zip(FP8, ("f8E4M3FN", "f8E5M2", "f8E4M3FNUZ", "f8E5M2FNUZ"), strict=True))
def test_constants_of_8_bits(dtype: torch.dtype, element: str) -> None:
    for bits, value in enumerate(torch.arange(256).to(torch.uint8).view(dtype).tolist()):
        text = literal(f"0x{bits:02X}", element)
        special = {"NAN": math.nan, "INFINITY": math.inf, "(-INFINITY)": -math.inf}
        number = special[text] if text in special else float(text.strip("()f"))
        assert number == value or (math.isnan(number) and math.isnan(value))


@triton.jit
def truncate_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place)
    tl.store(y_ptr + place, x.to(y_ptr.dtype.element_ty, fp_downcast_rounding="rtz"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_towards_zero(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(500), torch.randn(500) * 1e-7, torch.tensor([0.0, 3e38, -65519.0, 65520.0])])
    x = torch.cat([x, x[:20]])
    y = torch.empty(1024, dtype=dtype)
    truncate_kernel[(1,)](x, y, BLOCK=1024)
    magnitude, next_magnitude = y.abs().double(), (y.abs().view(torch.int16) + 1).view(dtype).double()
    assert (magnitude <= x.double().abs()).all() and (next_magnitude > x.double().abs()).all()
    assert torch.equal(y.signbit(), x.signbit())


@triton.jit
def directed_kernel(x_ptr, y_ptr, z_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + place), tl.load(y_ptr + place)
    tl.store(z_ptr + place, libdevice.add_rn(x, y))
    tl.store(z_ptr + BLOCK + place, libdevice.add_rz(x, y))
    tl.store(z_ptr + 2 * BLOCK + place, libdevice.add_rd(x, y))
    tl.store(z_ptr + 3 * BLOCK + place, libdevice.add_ru(x, y))
    tl.store(z_ptr + 4 * BLOCK + place, libdevice.mul_rn(x, y))
    tl.store(z_ptr + 5 * BLOCK + place, libdevice.mul_rz(x, y))
    tl.store(z_ptr + 6 * BLOCK + place, libdevice.mul_rd(x, y))
    tl.store(z_ptr + 7 * BLOCK + place, libdevice.mul_ru(x, y))
    tl.store(z_ptr + 8 * BLOCK + place, libdevice.div_rn(x, y))
    tl.store(z_ptr + 9 * BLOCK + place, libdevice.div_rz(x, y))
    tl.store(z_ptr + 10 * BLOCK + place, libdevice.div_rd(x, y))
    tl.store(z_ptr + 11 * BLOCK + place, libdevice.div_ru(x, y))


def test_arithmetic_that_rounds_in_a_direction() -> None:
    """The nearest numbers on both sides of the exact result, which is known to twice the digits."""
    x, y = torch.randn(256) * 3, torch.randn(256) * torch.logspace(-6, 6, 256)
    z = torch.empty(12, 256)
    directed_kernel[(1,)](x, y, z, BLOCK=256)
    a, b = x.double(), y.double()
    for (nearest, zero, down, up), exact in zip(z.view(3, 4, 256), (a + b, a * b, a / b), strict=True):
        assert torch.equal(nearest, exact.float())
        assert (down.double() <= exact).all() and (up.double() >= exact).all()
        assert torch.equal(torch.nextafter(down, up), up) and (down != up).any()
        assert torch.equal(zero, torch.where(exact > 0, down, up))


@triton.jit
def libdevice_kernel(x_ptr, y_ptr, n_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place)
    tl.store(y_ptr + place, libdevice.sqrt_rz(tl.abs(x)))
    tl.store(y_ptr + BLOCK + place, libdevice.rcp_rn(x))
    tl.store(y_ptr + 2 * BLOCK + place, libdevice.fma_rn(x, x, 1.0))
    tl.store(y_ptr + 3 * BLOCK + place, libdevice.rhypot(x, 2.0))
    tl.store(y_ptr + 4 * BLOCK + place, libdevice.sinpi(x))
    tl.store(y_ptr + 5 * BLOCK + place, libdevice.normcdf(x))
    tl.store(n_ptr + place, libdevice.float2int_rd(x))
    tl.store(n_ptr + BLOCK + place, libdevice.float2int_ru(x))
    tl.store(n_ptr + 2 * BLOCK + place, libdevice.float2int_rn(x))
    tl.store(n_ptr + 3 * BLOCK + place, libdevice.float_as_int(x))


def test_more_functions_of_libdevice() -> None:
    x = torch.randn(256) * 3
    y, n = torch.empty(6, 256), torch.empty(4, 256, dtype=torch.int32)
    libdevice_kernel[(1,)](x, y, n, BLOCK=256)
    a = x.double()
    root = a.abs().sqrt()
    assert (y[0].double() <= root).all() and (torch.nextafter(y[0], torch.tensor(9.0)).double() > root).all()
    expected = [1 / a, a * a + 1, 1 / (a * a + 4).sqrt(), (a * math.pi).sin(), torch.special.ndtr(a)]
    torch.testing.assert_close(y[1:].double(), torch.stack(expected), rtol=3e-7, atol=1e-7)
    assert torch.equal(n, torch.stack([x.floor().int(), x.ceil().int(), x.round().int(), x.view(torch.int32)]))


@triton.jit
def unknown_function_kernel(x_ptr, y_ptr):
    tl.store(y_ptr, libdevice.cyl_bessel_i0(tl.load(x_ptr)))


def test_an_unknown_function_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"__nv_cyl_bessel_i0f.*test_cpu_language\.py:\d+"):
        unknown_function_kernel[(1,)](torch.ones(1), torch.ones(1))


@triton.jit
def persistent_kernel(x_ptr, y_ptr, rows, COLS: tl.constexpr):
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        place = row * COLS + tl.arange(0, COLS)
        tl.store(y_ptr + place, tl.load(x_ptr + place) * 2)


def test_a_grid_chosen_by_occupancy() -> None:
    """As persistent kernels of Triton's tutorials choose it."""
    x, y = torch.randn(100, 64), torch.empty(100, 64)
    properties = triton.runtime.driver.active.utils.get_device_properties(0)
    kernel = persistent_kernel.warmup(x, y, 100, COLS=64, num_warps=8, grid=(1,))
    kernel._init_handles()
    assert kernel.n_spills == 0
    occupancy = properties["max_num_regs"] // (kernel.n_regs * properties["warpSize"] * 8)
    occupancy = min(occupancy, properties["max_shared_mem"] // kernel.metadata.shared)
    programs = min(properties["multiprocessor_count"] * occupancy, 100)
    assert programs > 0
    kernel[(programs, 1, 1)](x, y, 100, 64)
    assert torch.equal(y, 2 * x)


@pytest.mark.skipif(not hasattr(tl, "atomic_poll"), reason="Triton 3.9 has it")
def test_programs_that_wait_for_earlier_ones() -> None:
    @triton.jit
    def relay_kernel(flag_ptr, x_ptr, y_ptr, BLOCK: tl.constexpr):
        program = tl.program_id(0)
        reached = tl.atomic_poll(flag_ptr, program)
        place = tl.arange(0, BLOCK)
        total = tl.atomic_load(y_ptr + place) + tl.load(x_ptr + program * BLOCK + place)
        tl.atomic_store(y_ptr + place, total, mask=reached)
        tl.atomic_store(flag_ptr, program + 1, sem="release")

    x, y, flag = torch.randn(8, 16), torch.zeros(16), torch.zeros(1, dtype=torch.int32)
    relay_kernel[(8,)](flag, x, y, BLOCK=16)
    torch.testing.assert_close(y, x.sum(0))
