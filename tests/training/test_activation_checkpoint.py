"""Blocks computed again in the backward pass: less memory, nothing else different."""

import copy

import pytest
import torch

from botvision.detection.backbone import PyramidBackbone
from botvision.device import peak_memory
from botvision.training.activation_checkpoint import recompute_blocks

TINY = {"layers": (2, 1, 2, 2), "channels": (16, 16, 32, 32)}


def backbone(name="botnet50", **model_args):
    torch.manual_seed(0)
    return PyramidBackbone(name, 64, channels=16, norm="plain", model_args=model_args)


def step(model, x):
    """Outputs, gradients and batch statistics of one training step, and the bytes it saved."""
    saved = 0

    def pack(tensor):
        nonlocal saved
        saved += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        levels = list(model.train()(x).values())
    sum(level.square().mean() for level in levels).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return levels, grads, dict(model.named_buffers()), saved


@pytest.mark.parametrize(
    ("name", "args"),
    [("botnet50", TINY), ("botnet50", {**TINY, "drop_path_rate": 0.3}), ("convnext_atto", {})],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_train_alike_and_save_less(name, args, precision):
    plain = backbone(name, **args)
    lean = copy.deepcopy(plain)
    recompute_blocks(lean.body)
    assert list(lean.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    results = []
    for model in (plain, lean):
        torch.manual_seed(1)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            results.append(step(model, x))
    (levels, grads, buffers, saved), (lean_levels, lean_grads, lean_buffers, lean_saved) = results
    for a, b in zip(levels, lean_levels, strict=True):
        assert torch.equal(a, b)
    for key, grad in grads.items():
        torch.testing.assert_close(lean_grads[key], grad, msg=key)
    for key, buffer in buffers.items():
        assert torch.equal(lean_buffers[key], buffer), key
    assert lean_saved < 0.7 * saved


def test_a_copy_of_a_recomputing_model_uses_its_own_weights():
    """As a moving average of the weights makes one."""
    model = backbone(**TINY)
    recompute_blocks(model.body)
    copied = copy.deepcopy(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.eval()(x)["0"]
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(model(x)["0"], before)
        assert not torch.equal(copied.eval()(x)["0"], before)


def test_the_peak_includes_what_was_freed():
    before = peak_memory("cpu")
    torch.ones(300 * 2**20, dtype=torch.uint8)
    assert peak_memory("cpu") - before < 2**30
    assert peak_memory("cpu") > 300 * 2**20
