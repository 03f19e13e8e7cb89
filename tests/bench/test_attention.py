"""The benchmark of one layer: float64 result, rows and memory."""

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn

from botvision.attention import (
    Implementation,
    RelativeAttention2d,
    chunked,
    functional,
    implementations,
)
from botvision.bench import attention
from botvision.bench.attention import exact, measure_attention
from botvision.bench.config import AttentionBenchConfig

SUBJECTS = [*implementations("cpu"), "timm", "no positions", "3x3 convolution"]


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, since several threads only wait for each other on maps this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(**settings):
    common = {"sizes": ["3", "2x4"], "dim": 16, "num_heads": 2, "seconds": 0.0, "device": "cpu"}
    return AttentionBenchConfig(**{**common, "impl": implementations("cpu"), **settings})


@pytest.mark.parametrize("split", [False, True])
def test_exact_is_timms_layer_in_float64(split, monkeypatch):
    if split:
        monkeypatch.setattr(attention, "_LOGITS", 50)
    layer = RelativeAttention2d(16, (3, 5), num_heads=2)
    timm = BottleneckAttn(16, feat_size=(3, 5), num_heads=2, scale_pos_embed=True).double()
    timm.load_state_dict(layer.state_dict())
    x, upstream = torch.randn(2, 16, 3, 5), torch.randn(2, 16, 3, 5)
    x64 = x.double().requires_grad_()
    out = timm(x64)
    (got,) = exact(layer, x)
    torch.testing.assert_close(got, out, rtol=1e-12, atol=1e-12)
    want = torch.autograd.grad(out, [x64, *timm.parameters()], upstream.double())
    torch.testing.assert_close(exact(layer, x, upstream), want, rtol=1e-11, atol=1e-11)


def test_every_row_is_complete_and_accurate():
    said = []
    groups = list(measure_attention(tiny(), progress=said.append))
    assert len(groups) == len(said) == 2 * 2 * 2
    assert said[-1] == "train, bf16, map 2x4 (8 of 8)"
    for group in groups:
        assert [row.subject for row in group] == SUBJECTS
        assert sum(row.auto for row in group) == 1
        timm = group[SUBJECTS.index("timm")]
        for row in group:
            assert row.failure is None and row.runs == 3
            assert row.median_ms > 0 and row.spread_ms >= 0
            # At least the output is allocated, with 2 bytes per element or more.
            assert row.peak_mib * 2**20 >= row.batch_size * 16 * row.height * row.width * 2
            assert row.ratio == timm.median_ms / row.median_ms
            if row.subject in ("no positions", "3x3 convolution"):
                assert row.relative_error is None
            elif row.precision == "32":
                assert 0 < row.relative_error < 1e-5
            else:
                assert 1e-4 < row.relative_error < 0.05


def test_a_fault_of_an_implementation_shows_in_its_error(monkeypatch):
    attend = chunked.attend
    monkeypatch.setitem(
        functional._IMPLEMENTATIONS,
        "chunked",
        Implementation(
            "chunked",
            lambda q, k, v, by_row, by_column, scale: attend(q, k, v, by_row, by_column, 2 * scale),
        ),
    )
    (rows,) = measure_attention(tiny(sizes=["3"], precision=["32"], mode=["forward"]))
    errors = {row.subject: row.relative_error for row in rows}
    assert errors["chunked"] > 0.01 > 1e-5 > errors["timm"]


def test_an_implementation_that_cannot_run_says_why(monkeypatch):
    def refuse(*_):
        raise ValueError("heads of 8 only")

    refusing = Implementation("chunked", refuse)
    monkeypatch.setitem(functional._IMPLEMENTATIONS, "chunked", refusing)
    (rows,) = measure_attention(tiny(sizes=["3"], precision=["32"], mode=["forward"]))
    failed = next(row for row in rows if row.subject == "chunked")
    assert failed.failure == "ValueError: heads of 8 only"
    assert (failed.median_ms, failed.relative_error, failed.ratio) == (None, None, None)
    assert all(row.failure is None for row in rows if row is not failed)


def test_a_batch_is_of_2048_cells_and_8_images_at_most(monkeypatch):
    assert attention._CELLS == 2048
    monkeypatch.setattr(attention, "_CELLS", 32)
    config = tiny(sizes=["1x2", "3", "6"], precision=["32"], mode=["forward"])
    assert [group[0].batch_size for group in measure_attention(config)] == [8, 3, 1]
    (rows,) = measure_attention(tiny(sizes=["3"], precision=["32"], mode=["train"], batch_size=5))
    assert rows[0].batch_size == 5


def test_the_marked_one_is_what_auto_runs(monkeypatch):
    config = tiny(sizes=["3", "30"])
    marked = [row for group in measure_attention(config) for row in group if row.auto]
    assert len(marked) == 8

    ran = []
    for name in implementations("cpu"):
        module = getattr(functional, name)

        def spy(*args, name=name, attend=module.attend):
            ran.append(name)
            return attend(*args)

        monkeypatch.setitem(functional._IMPLEMENTATIONS, name, Implementation(name, spy))
    for row in marked:
        size = (row.height, row.width)
        x = torch.randn(1, 16, *size, requires_grad=row.mode == "train")
        layer = RelativeAttention2d(16, size, num_heads=2)
        half = row.precision == "bf16"
        with (
            torch.set_grad_enabled(row.mode == "train"),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
        ):
            layer(x)
        assert row.subject == ran.pop()


def test_memory_is_linear_in_the_tokens_for_chunked_and_quadratic_for_reference(monkeypatch):
    monkeypatch.setattr(chunked, "TILE_LOGITS", 2**14)
    monkeypatch.setattr(chunked, "BACKWARD_TILE_LOGITS", 2**13)
    config = tiny(
        sizes=["16", "32"],
        impl=["reference", "chunked"],
        precision=["32"],
        mode=["train"],
        batch_size=1,
    )
    small, large = (
        {row.subject: row.peak_mib for row in group} for group in measure_attention(config)
    )
    assert large["reference"] / small["reference"] > 10
    assert large["timm"] / small["timm"] > 10
    assert large["chunked"] / small["chunked"] < 6
