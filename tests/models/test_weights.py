"""ImageNet weights into everything but the attention."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import botvision
from botvision.errors import UserError

SMALL = {"layers": (1, 1, 1, 1)}


def small_botnet(**kwargs):
    return botvision.create_model("botnet50", **SMALL, **kwargs)


def timm_file(path):
    resnet = timm.create_model("resnet50", **SMALL)
    save_file(resnet.state_dict(), path / "resnet.safetensors")
    return resnet, path / "resnet.safetensors"


def torchvision_file(path):
    block = torchvision.models.resnet.Bottleneck
    resnet = torchvision.models.ResNet(block, [1, 1, 1, 1])
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in resnet.state_dict().items()}}, path / "r.pth"
    )
    return resnet, path / "r.pth"


@pytest.mark.parametrize("make", [timm_file, torchvision_file])
@pytest.mark.parametrize("features_only", [False, True])
def test_everything_but_the_attention(tmp_path, make, features_only):
    resnet, file = make(tmp_path)
    model = small_botnet(features_only=features_only)
    drawn = model.state_dict()["layer4.0.conv2.qkv.weight"].clone()
    report = botvision.load_weights(model, file)
    own = model.state_dict()
    want = resnet.state_dict()
    for name, tensor in own.items():
        if not name.startswith("layer4.0.conv2"):
            assert torch.equal(tensor, want[name]), name
    assert torch.equal(own["layer4.0.conv2.qkv.weight"], drawn)
    assert report.new == [
        f"layer4.0.conv2.{n}" for n in ("qkv.weight", "pos_embed.height_rel", "pos_embed.width_rel")
    ]
    unused = {"layer4.0.conv2.weight"} | ({"fc.weight", "fc.bias"} if features_only else set())
    assert set(report.ignored) == unused
    assert "layer4.0.conv2.weight" in str(report)


def test_a_classifier_of_another_size_stays_new(tmp_path):
    _, file = timm_file(tmp_path)
    report = botvision.load_weights(small_botnet(num_classes=7), file)
    assert {"fc.weight", "fc.bias"} <= set(report.new)
    assert {"fc.weight", "fc.bias"} <= set(report.ignored)


def test_another_architecture_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    _, file = timm_file(tmp_path)
    model = botvision.create_model("botnet50", layers=(1, 2, 1, 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"resnet.safetensors: not the weights .*layer2\.1\.conv1"):
        botvision.load_weights(model, file)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("source", [timm.create_model, torchvision.models.get_model])
@pytest.mark.parametrize(
    "name", ["resnet50_bot_c4", "resnet50_bot_c4_c5", "resnet50_nl_c4", "resnet50_nl_c4_value"]
)
def test_everything_but_the_inserted_blocks(tmp_path, source, name):
    resnet = source("resnet50")
    save_file(resnet.state_dict(), tmp_path / "resnet50.safetensors")
    model = botvision.create_model(name)
    drawn = {k: v.clone() for k, v in model.state_dict().items()}
    report = botvision.load_weights(model, tmp_path / "resnet50.safetensors")
    own, want = model.state_dict(), resnet.state_dict()
    assert all(torch.equal(own[n], want[n]) for n in want)
    inserted = ("layer3.bot.", "layer4.bot.", "layer3.nl.")
    new = [n for n in own if n not in want and not n.endswith("num_batches_tracked")]
    assert report.new == new
    assert all(n.startswith(inserted) and torch.equal(own[n], drawn[n]) for n in new)
    assert report.ignored == []


@pytest.mark.parametrize("source", [timm.create_model, torchvision.models.get_model])
@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("features_only", [False, True])
def test_everything_but_c5_of_a_shallow_body(tmp_path, source, depth, features_only):
    resnet = source(f"resnet{depth}")
    torch.nn.init.normal_(resnet.layer4[1].bn1.weight)
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    model = botvision.create_model(f"botnet{depth}", features_only=features_only)
    drawn = {k: v.clone() for k, v in model.state_dict().items()}
    report = botvision.load_weights(model, tmp_path / "resnet.safetensors")
    want = resnet.state_dict()
    for name, tensor in model.state_dict().items():
        fresh = name.startswith(("layer4.", "fc."))
        assert torch.equal(tensor, drawn[name] if fresh else want[name]), name
        assert name.endswith("num_batches_tracked") or fresh == (name in report.new)
    assert {n.split(".")[0] for n in report.ignored} == {"layer4", "fc"}


@pytest.mark.parametrize("name", ["botnet18", "resnet50_bot_c4_c5", "resnet50_nl_c4_value"])
def test_an_earlier_run_is_loaded_whole(tmp_path, name):
    size = {} if "nl" in name else {"image_size": 96}
    first, second = (botvision.create_model(name, **size) for _ in range(2))
    torch.nn.init.normal_(next(m for n, m in first.named_modules() if n.endswith(".bn3")).weight)
    save_file(first.state_dict(), tmp_path / "run.safetensors")
    report = botvision.load_weights(second, tmp_path / "run.safetensors")
    assert (report.new, report.ignored, report.resized) == ([], [], [])
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in second.state_dict().items())
    if size:
        other = botvision.create_model(name, image_size=224, position="absolute")
        report = botvision.load_weights(other, tmp_path / "run.safetensors")
        assert all(".pos_embed." in n for n in report.new + report.ignored)
        larger = botvision.create_model(name, image_size=224)
        report = botvision.load_weights(larger, tmp_path / "run.safetensors")
        assert (report.new, report.ignored) == ([], [])
        assert len(report.resized) == 4


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("resnet50", "botnet18"),
        ("resnet18", "botnet34"),
        ("resnet18", "botnet50"),
        ("resnet50", "botnet101"),
        ("resnet18", "resnet50_bot_c4"),
        ("resnet26", "resnet50_nl_c4"),
    ],
)
def test_another_depth_is_refused(tmp_path, file, name):
    save_file(timm.create_model(file).state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match="not the weights of this architecture"):
        botvision.load_weights(botvision.create_model(name), tmp_path / "resnet.safetensors")


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_unreadable_files(tmp_path, name, content):
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{name}: not a ") as caught:
        botvision.load_weights(small_botnet(), file)
    assert "\n" not in str(caught.value)


def test_files_without_weights(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "dict.pth")
    for name, message in (("list.pth", "no state dict"), ("dict.pth", "no tensors")):
        with pytest.raises(UserError, match=message):
            botvision.load_weights(small_botnet(), tmp_path / name)
    with pytest.raises(UserError, match=r"nowhere.pth: no such weights file"):
        botvision.load_weights(small_botnet(), tmp_path / "nowhere.pth")


class Payload:
    def __reduce__(self):
        return (print, ("ran code from a weights file",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth: not a readable safetensors or weights_only"):
        botvision.load_weights(small_botnet(), tmp_path / "evil.pth")
    assert "ran code" not in capsys.readouterr().out
