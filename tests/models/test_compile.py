"""A whole model under torch.compile and torch.export, and in channels-last memory."""

import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet

from botvision.attention import Implementation, implementations, reference
from botvision.models import create_model, to_botnet

IMPLEMENTATIONS = ["auto", *implementations("cpu")]


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


def check_full_graph(eager, x, weights, *, autocast=False):
    """Compiled without a break, it gives the gradients that it gives as it is."""
    gradients = []
    # aot_eager traces forward and backward as every backend does, and generates no code.
    for run in (eager, torch.compile(eager, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            run(x).square().sum().backward()
        gradients.append([weight.grad for weight in weights])
        eager.zero_grad(set_to_none=True)
    for ours, theirs in zip(*gradients, strict=True):
        # The statistics of batch normalization moved between the two runs: not in the gradients.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * ours.abs().max().item())


@pytest.mark.parametrize("autocast", [False, True])
def test_no_graph_break_in_training(autocast):
    eager = model().train()
    layer = eager.layer4[0].conv2
    weights = [layer.qkv.weight, layer.pos_embed.height_rel]
    check_full_graph(eager, images(2, 3, 64, 64), weights, autocast=autocast)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_graph_break_in_an_implementation(impl, autocast):
    """The last stage alone: the rest of the model is the same for all."""
    stage = model(impl=impl).layer4.train()
    weights = [stage[0].conv2.qkv.weight, stage[0].conv2.pos_embed.height_rel]
    check_full_graph(stage, images(2, 1024, 4, 4), weights, autocast=autocast)


@pytest.mark.parametrize("impl", ["chunked", Implementation("own", reference.attend)])
def test_no_graph_break_without_positions(impl):
    stage = model(position="none", impl=impl).layer4.train()
    check_full_graph(stage, images(2, 1024, 4, 4), [stage[0].conv2.qkv.weight])


@pytest.mark.slow
def test_one_compiled_graph_takes_many_sizes():
    eager = model().eval()
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((2, 3, 64, 96), (3, 3, 160, 64)):
            x = images(*size)
            torch.testing.assert_close(compiled(x), eager(x))


# The first is traced; the others are smaller than the tables, theirs, larger; oblong and odd.
SIZES = [(2, 96, 160), (1, 40, 64), (2, 64, 64), (1, 64, 200), (3, 75, 101)]


def check_export(eager, channels=3, reduction=1):
    """One program is right at all sizes, of images or of maps so much smaller."""
    first, *others = (
        images(n, channels, -(-height // reduction), -(-width // reduction))
        for n, height, width in SIZES
    )
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        eager, (first,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    ).module()
    for x in others:
        torch.testing.assert_close(exported(x), eager(x))


def test_one_exported_program_takes_any_size():
    check_export(model().eval())


@pytest.mark.parametrize("table_resize", ["slice", "interpolate"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_one_exported_stage_takes_any_size(position, table_resize):
    stage = model(position=position, table_resize=table_resize).layer4.eval()
    check_export(stage, channels=1024, reduction=16)


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
    weight = eager.layer3[1].conv1.weight if "bot" in name else eager.layer3[1].t.weight
    check_full_graph(eager, images(2, 3, 64, 64), [weight])
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
