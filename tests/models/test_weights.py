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
    with pytest.raises(UserError, match=r"evil.pth: not a safetensors or weights_only"):
        botvision.load_weights(small_botnet(), tmp_path / "evil.pth")
    assert "ran code" not in capsys.readouterr().out
