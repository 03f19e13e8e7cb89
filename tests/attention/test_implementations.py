"""Which implementation runs: by name, by choice, or one's own."""

from types import SimpleNamespace

import pytest
import torch

from botvision.attention import (
    Implementation,
    RelativeAttention2d,
    functional,
    implementations,
    reference,
    relative_attention_2d,
)
from botvision.attention.implementation import zero_logits

IMPLEMENTATIONS = implementations("cpu")


class Recorder:
    """An implementation of one's own, which records the logits it is given."""

    def __init__(self, name="recorder"):
        self.logits = []
        self.implementation = Implementation(name, self.attend)

    def attend(self, q, k, v, height_logits, width_logits, scale):
        self.logits.append((height_logits, width_logits))
        return reference.attend(q, k, v, height_logits, width_logits, scale)


def test_an_implementation_of_ones_own_needs_no_registration():
    recorder = Recorder()
    tensors = [torch.randn(2, 2, 12, 8) for _ in range(3)]
    tensors += torch.randn(5, 8), torch.randn(7, 8)
    got = relative_attention_2d(*tensors, size=(3, 4), impl=recorder.implementation)
    want = relative_attention_2d(*tensors, size=(3, 4), impl="reference")
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    layer = RelativeAttention2d(16, (3, 4), impl=recorder.implementation)
    layer(torch.randn(2, 16, 3, 4))
    shapes = [tuple(logits.shape for logits in given) for given in recorder.logits]
    assert shapes == [((2, 2, 12, 3), (2, 2, 12, 4)), ((2, 4, 12, 3), (2, 4, 12, 4))]
    assert "recorder" not in implementations("cpu")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_impl_is_respected_without_positions(impl, monkeypatch):
    recorder = Recorder(impl)
    monkeypatch.setitem(functional._IMPLEMENTATIONS, impl, recorder.implementation)
    x = torch.randn(1, 16, 3, 4)
    RelativeAttention2d(16, (3, 4), position="none", impl=impl)(x)
    RelativeAttention2d(16, (3, 4), position="none", impl=Recorder().implementation)(x)
    assert recorder.logits == [(None, None)]


def test_auto_without_positions_is_pytorchs_own_attention(monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(functional._IMPLEMENTATIONS, "sdpa", recorder.implementation)
    with torch.no_grad():
        RelativeAttention2d(16, (3, 4), position="none")(torch.randn(1, 16, 3, 4))
    assert recorder.logits == [(None, None)]


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_auto_is_sdpa_where_nothing_has_been_measured(device, trained, positions):
    q = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16, shape=(1, 4, 196, 128))
    assert functional.fastest(q, trained=trained, positions=positions) == "sdpa"


def test_implementations_are_those_that_support_the_device(monkeypatch):
    assert implementations("cpu")[:3] == ["reference", "sdpa", "chunked"]
    assert not {"chunked", "onednn"} & set(implementations("cuda"))
    nowhere = Implementation("nowhere", reference.attend, lambda device: False)
    everywhere = Implementation("everywhere", reference.attend)
    for one in (nowhere, everywhere):
        monkeypatch.setitem(functional._IMPLEMENTATIONS, one.name, one)
    assert implementations("meta") == ["reference", "sdpa", "everywhere"]


@pytest.mark.parametrize(("tokens", "sides"), [(12, (3, 4)), (49, (7, 7)), (13, (1, 13))])
def test_zero_logits_are_few(tokens, sides):
    by_row, by_column = zero_logits(torch.randn(2, 3, tokens, 8).bfloat16())
    assert by_row.shape == (2, 3, tokens, sides[0])
    assert by_column.shape == (2, 3, tokens, sides[1])
    assert by_row.dtype == by_column.dtype == torch.float32
    assert not by_row.any() and not by_column.any()
