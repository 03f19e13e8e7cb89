"""A whole model under torch.compile and torch.export, and in channels-last memory."""

import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet

from botvision.models import create_model, to_botnet

IMPLEMENTATIONS = ["auto", "chunked", "flash", "reference"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.manual_seed(0)
    torch.compiler.reset()


def model(**kwargs):
    """All stages of botnet50, two blocks in the last: shorter, since graphs take time to trace."""
    resnet = ResNet(Bottleneck, [1, 1, 1, 2], num_classes=10)
    return to_botnet(resnet, image_size=64, **kwargs).to(memory_format=torch.channels_last)


def images(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_graph_break_in_training(impl, autocast):
    eager = model(impl=impl).train()
    x = images(2, 3, 64, 64)
    gradients = []
    # aot_eager traces forward and backward as every backend does, and generates no code.
    for run in (eager, torch.compile(eager, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            run(x).square().sum().backward()
        layer = eager.layer4[0].conv2
        gradients.append([layer.qkv.weight.grad, layer.pos_embed.height_rel.grad])
        eager.zero_grad(set_to_none=True)
    for ours, theirs in zip(*gradients, strict=True):
        # The statistics of batch normalisation moved between the two runs: not in the gradients.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * ours.abs().max().item())


@pytest.mark.slow
def test_one_compiled_graph_takes_many_sizes():
    eager = model().eval()
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((2, 3, 64, 96), (3, 3, 160, 64)):
            x = images(*size)
            torch.testing.assert_close(compiled(x), eager(x))


def check_export(eager):
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        eager, (images(2, 3, 96, 160),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    ).module()
    # Smaller than the tables, theirs, larger; oblong and odd.
    for size in ((1, 3, 40, 64), (2, 3, 64, 64), (1, 3, 64, 200), (3, 3, 75, 101)):
        x = images(*size)
        torch.testing.assert_close(exported(x), eager(x))


@pytest.mark.parametrize("table_resize", ["slice", "interpolate"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_one_exported_program_takes_any_size(position, table_resize):
    check_export(model(position=position, table_resize=table_resize).eval())


def inserted(name):
    made = create_model(name, layers=(1, 1, 2, 2), num_classes=10)
    return made.to(memory_format=torch.channels_last)


INSERTED = ["resnet50_bot_c4", "resnet50_nl_c4", "resnet50_nl_c4_value"]


@pytest.mark.parametrize("name", INSERTED)
def test_inserted_blocks_compile_and_export(name):
    eager = inserted(name)
    for block in eager.layer3:
        for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            torch.nn.init.ones_(norm.weight)
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    x = images(2, 3, 64, 64)
    weight = eager.layer3[1].conv1.weight if "bot" in name else eager.layer3[1].t.weight
    gradients = []
    for run in (eager, compiled):
        run(x).square().sum().backward()
        gradients.append(weight.grad)
        eager.zero_grad(set_to_none=True)
    ours, theirs = gradients
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * ours.abs().max().item())
    check_export(eager.eval())


@pytest.mark.slow
@pytest.mark.parametrize("features_only", [False, True])
def test_botnet50_exports(features_only):
    check_export(create_model("botnet50", image_size=64, features_only=features_only).eval())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_all_the_way(impl, dtype):
    """Every layer hands on channels-last memory, gradients included."""
    formats = memory_formats(model(impl=impl).to(dtype).train(), dtype)
    assert {"layer4.0.conv2", "layer4.1.conv2 gradient"} <= formats.keys()
    assert [name for name, channels_last in formats.items() if not channels_last] == []


@pytest.mark.parametrize("name", INSERTED)
def test_inserted_blocks_keep_channels_last(name):
    formats = memory_formats(inserted(name).train(), torch.float32)
    block = "layer3.nl" if "nl" in name else "layer3.bot"
    assert {block, f"{block} gradient"} <= formats.keys()
    # The product of queries and keys hands the keys their gradient transposed.
    formats.pop("layer3.nl.p gradient", None)
    assert [name for name, channels_last in formats.items() if not channels_last] == []


def memory_formats(made, dtype):
    """Whether what each layer of a stage hands on, and its gradient, is channels-last."""
    formats = {}

    def look(name):
        def forward_hook(module, inputs, output):
            formats[name] = output.is_contiguous(memory_format=torch.channels_last)
            output.register_hook(
                lambda grad: formats.update(
                    {f"{name} gradient": grad.is_contiguous(memory_format=torch.channels_last)}
                )
            )

        return forward_hook

    for name, module in made.named_modules():
        if name.startswith("layer") and "pos_embed" not in name and not name.endswith("qkv"):
            module.register_forward_hook(look(name))
    out = made.forward_features(images(2, 3, 64, 96).to(dtype))
    out.backward(torch.randn_like(out))
    return formats
