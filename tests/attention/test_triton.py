"""The Triton kernels against float64: on a GPU, or else in Triton's interpreter (see conftest)."""

import os
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from botvision.attention import RelativeAttention2d, flex, functional, implementations, reference

triton = pytest.importorskip(
    "botvision.attention.triton_attention", reason="needs Triton", exc_type=ImportError
)

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    if HAS_GPU:
        yield
        return
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, multiply = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self, source, dtype):
        """To bfloat16 the interpreter cuts off; a GPU rounds."""
        if source.dtype != language.float32 or dtype.scalar != language.bfloat16:
            return cast(self, source, dtype)
        rounded = torch.tensor(source.data).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(rounded, language.bfloat16)

    def as_float(operand):
        if operand.dtype != language.bfloat16:
            return operand
        return TensorHandle((operand.data.astype("u4") << 16).view("f4"), language.float32)

    def create_dot(self, a, b, *args):
        """The interpreter multiplies the bits of bfloat16 (triton-lang/triton, issue 11584)."""
        return multiply(self, as_float(a), as_float(b), *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


def draw(size, *, batch=1, heads=2, dim=16, dtype=torch.float32, seed=0):
    """q, k and v as the module makes them, slices of one buffer, and position logits."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    tokens = height * width
    qkv = torch.randn(batch, tokens, 3, heads, dim, generator=generator).to(DEVICE, dtype)
    logits = [
        torch.randn(batch, heads, tokens, side, generator=generator).to(DEVICE) for side in size
    ]
    return [*qkv.permute(2, 0, 3, 1, 4).unbind(), *logits]


def upstream_of(q, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(q.shape, generator=generator).to(q.device, q.dtype)


def result_and_gradients(attend, tensors, upstream):
    """The result and the gradients of ``tensors``, which keep their strides."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = attend(*leaves, tensors[0].shape[-1] ** -0.5)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def check(tensors, upstream=None):
    """Result and gradients are those of the same rounded inputs in float64.

    In half precision the weights, their gradients and the results are rounded to half a unit each,
    and all is relative to the largest value. What the softmax takes off the gradients of the logits
    is a product with the rounded result, whose error is left where those gradients cancel: along a
    side of one cell they are zero.
    """
    if upstream is None:
        upstream = upstream_of(tensors[0])
    dtype = tensors[0].dtype
    bound = 1e-5 if dtype == torch.float32 else 1.5 * torch.finfo(dtype).eps
    got = result_and_gradients(triton.attend, tensors, upstream)
    want = result_and_gradients(reference.attend, [t.double() for t in tensors], upstream.double())
    taken_off = (want[0] * upstream).norm(dim=-1).max().item()
    floors = [0, taken_off, taken_off, 0, taken_off, taken_off]
    for result, expected, floor in zip(got, want, floors, strict=True):
        assert result.shape == expected.shape
        error = (result - expected).abs().max().item()
        assert error <= bound * max(floor, expected.abs().max().item())
    assert got[0].dtype == dtype
    assert got[0].transpose(1, 2).is_contiguous()


# Without the phase that looks for a smaller failing example, which can take minutes.
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    dim=st.sampled_from([16, 24, 32, 64, 128]),
    dtype=st.sampled_from(DTYPES),
)
def test_equals_float64(size, batch, heads, dim, dtype):
    check(draw(size, batch=batch, heads=heads, dim=dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_wider_than_a_tile(dtype):
    check(draw((2, 131), heads=1, dtype=dtype))


@pytest.mark.parametrize(
    ("size", "block_w"),
    [((64, 64), 64), ((50, 84), 32), ((25, 42), 16), ((14, 14), 16), ((7, 7), 8), ((9, 1), 8)],
)
def test_tiles_of_64_keys_hold_few_outside_the_image(size, block_w):
    assert triton._block_w(*size, 64) == block_w


def test_any_strides():
    q, k, v, by_row, by_column = draw((4, 5), dtype=torch.float16)
    k = k.contiguous()
    v = v.transpose(-2, -1).contiguous().transpose(-2, -1)
    by_row, by_column = (
        t.transpose(0, 1).contiguous().transpose(0, 1) for t in (by_row, by_column)
    )
    upstream = torch.ones((), dtype=q.dtype, device=q.device).expand(q.shape)
    check([q, k, v, by_row, by_column], upstream)


def test_runs_repeat_to_the_bit():
    tensors = draw((6, 11), heads=1, dim=32, dtype=torch.float16)
    runs = [result_and_gradients(triton.attend, tensors, upstream_of(tensors[0])) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_large_logits():
    """Logits of about 60: rounded to bf16 they are off by 0.25, the weights by a quarter."""
    q, k, v, by_row, by_column = draw((6, 7), dim=32, dtype=torch.bfloat16)
    tensors = [q * 4, k * 4, v, by_row * 15, by_column * 15]
    scores = reference.accurate(tensors[0]) @ reference.accurate(tensors[1]).mT * 32**-0.5
    assert scores.abs().max() + tensors[3].abs().max() > 60
    check(tensors)


def test_infinite_logits_hide_keys():
    tensors = draw((3, 5))
    tensors[3][..., 1] = -float("inf")
    got = triton.attend(*tensors, 0.25)
    torch.testing.assert_close(got, reference.attend(*tensors, 0.25), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (2, 70)])
def test_operators_keep_the_rules(size):
    """Schemas, strides of fake results, gradients and dynamic shapes."""
    tensors = draw(size, heads=1)
    leaves = [t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(triton._attention, (*leaves, 0.25))
    results = triton._attention(*tensors, 0.25)
    upstream = upstream_of(results[0])
    torch.library.opcheck(triton._attention_backward, (upstream, *tensors, *results, 0.25))


def test_compiles_whole():
    tensors = draw((3, 5), dtype=torch.float16)

    def attend(*args):
        return functional.attend(*args[:-1], scale=args[-1], impl="triton")

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    runs = [
        result_and_gradients(run, tensors, upstream_of(tensors[0])) for run in (attend, compiled)
    ]
    for eager, result in zip(*runs, strict=True):
        assert torch.equal(eager, result)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_logits_alone(dtype):
    tensors = draw((4, 5))
    leaves = [t.detach().requires_grad_() for t in tensors]
    with torch.autocast(DEVICE, dtype=dtype):
        out = triton.attend(*leaves, 0.25)
    grads = torch.autograd.grad(out.float().sum(), leaves)
    assert all(grad.dtype == torch.float32 for grad in grads)
    rounded = [t.to(dtype) for t in tensors[:3]]
    assert torch.equal(out, triton.attend(*rounded, *tensors[3:], 0.25))


# The launches of a GPU of that capability, in bfloat16, for heads of 128 channels.
COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from botvision.attention import triton_attention as ours

capability, launches, block_w = int(sys.argv[1]), getattr(ours, sys.argv[2]), int(sys.argv[3])
ints = "image_stride head_stride token_stride heads tokens height width padded_width"
half = "q k v out grad grad_q grad_k grad_v"
kinds = dict.fromkeys(ints.split(), "i32") | dict.fromkeys(half.split(), "*bf16")
kernels = ours.forward, ours.backward_queries, ours.backward_keys
for kernel, launch in zip(kernels, launches):
    constants = dict(dim=128, block_d=128, block_m=launch.queries, precision="ieee")
    constants |= dict(rows=launch.keys // block_w, block_w=block_w)
    others = kinds | dict.fromkeys(constants, "constexpr") | dict(scale="fp32")
    signature = {name: others.get(name, "*fp32") for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name][0] in "*i"]
    divisible = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, constants, divisible)
    options = dict(num_warps=launch.warps, num_stages=launch.stages, enable_fp_fusion=True)
    compiled = compile(source, GPUTarget("cuda", capability, 32), options)
    print(compiled.metadata.shared, "wgmma" in compiled.asm["ptx"])
"""


@pytest.mark.parametrize(
    ("capability", "launches", "block_w", "kib"),
    [(90, "_HALF", 64, 227), (80, "_HALF_BEFORE_HOPPER", 16, 99)],
)
def test_compiles_for_gpus(capability, launches, block_w, kib, tmp_path):
    """The interpreter takes what the compiler does not, and the compiler needs no GPU."""
    command = [sys.executable, "-c", COMPILE, str(capability), launches, str(block_w)]
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 3
    assert all(int(shared) <= kib * 1024 for shared, _ in lines)
    assert all(fast == str(capability == 90) for _, fast in lines)


def test_flops():
    tensors = [t.detach().requires_grad_() for t in draw((3, 4), batch=2, heads=3)]
    product = 2 * 2 * 3 * 12**2 * 16
    with FlopCounterMode(display=False) as counter:
        out = triton.attend(*tensors, 0.25)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == 7 * product


def test_module():
    torch.manual_seed(0)
    module = RelativeAttention2d(64, (4, 5), num_heads=4, impl="triton").to(DEVICE)
    torch.nn.init.normal_(module.qkv.weight, std=0.125)
    exact = deepcopy(module).double()
    exact.impl = "reference"
    x = torch.randn(2, 64, 4, 5, device=DEVICE)
    torch.testing.assert_close(module(x).double(), exact(x.double()), rtol=0, atol=1e-5)


def test_module_without_positions():
    module = RelativeAttention2d(64, (4, 5), num_heads=4, position="none", impl="triton").to(DEVICE)
    torch.nn.init.normal_(module.qkv.weight, std=0.125)
    exact = deepcopy(module).double()
    exact.impl = "reference"
    x = torch.randn(2, 64, 4, 5, device=DEVICE)
    torch.testing.assert_close(module(x).double(), exact(x.double()), rtol=0, atol=1e-5)


def test_auto_does_not_select_it():
    """It has not run on a GPU yet."""
    assert triton.available(torch.device("cuda"))
    q = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 4, 196, 128))
    assert functional.fastest(q, trained=True) == functional.fastest(q, trained=False) == "sdpa"


def test_errors(monkeypatch):
    tensors = draw((2, 3), dim=8)
    with pytest.raises(ValueError, match=r"heads of 16 to 128 channels .* not 8 channels in"):
        functional.attend(*tensors, scale=1.0, impl="triton")
    with pytest.raises(ValueError, match=r"not 16 channels in torch.float64"):
        functional.attend(*(t.double() for t in draw((2, 3))), scale=1.0, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"needs a CUDA GPU .* on cpu"):
        functional.attend(*(t.cpu() for t in draw((2, 3))), scale=1.0, impl="triton")


def test_where_it_is_listed(monkeypatch):
    assert {"flex", "triton"} <= set(implementations("cuda"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "triton" in implementations("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "triton" not in implementations("cpu")


@needs_gpu
@pytest.mark.parametrize(
    ("size", "dim", "dtype"),
    [((64, 64), 128, torch.bfloat16), ((50, 84), 64, torch.float32), ((64, 64), 64, torch.float16)],
)
def test_large_maps(size, dim, dtype):
    check(draw(size, dim=dim, dtype=dtype))


@needs_gpu
def test_large_maps_repeat_to_the_bit():
    tensors = draw((50, 84), batch=4, heads=4, dim=128, dtype=torch.bfloat16)
    runs = [result_and_gradients(triton.attend, tensors, upstream_of(tensors[0])) for _ in range(3)]
    for results in zip(*runs, strict=True):
        assert all(torch.equal(results[0], result) for result in results[1:])


@needs_gpu
def test_equals_flex():
    tensors = draw((32, 48), batch=2, heads=4, dim=128, dtype=torch.bfloat16)
    upstream = upstream_of(tensors[0])
    got = result_and_gradients(triton.attend, tensors, upstream)
    want = result_and_gradients(flex.attend, tensors, upstream)
    for result, expected in zip(got, want, strict=True):
        error = (result.float() - expected.float()).abs().max()
        assert error <= 6 * torch.finfo(torch.bfloat16).eps * max(1, expected.abs().max())


@needs_gpu
def test_memory_is_linear_in_the_tokens():
    """Four times the tokens take four times the memory, and their position logits eight times."""
    peaks = []
    for side in (32, 64):
        tensors = draw((side, side), batch=8, heads=4, dim=128, dtype=torch.bfloat16)
        upstream = upstream_of(tensors[0])
        torch.cuda.reset_peak_memory_stats()
        result_and_gradients(triton.attend, tensors, upstream)
        peaks.append(torch.cuda.max_memory_allocated())
        del tensors, upstream
    assert peaks[1] < 6 * peaks[0]


@needs_gpu
def test_tf32_is_used_if_allowed():
    tensors = draw((16, 16), dim=64)
    exact = triton.attend(*tensors, 0.125)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
        rounded = triton.attend(*tensors, 0.125)
    assert 0 < (rounded - exact).abs().max() < 1e-2
