"""Initial weights of a detector from torchvision, earlier runs and backbones, and the report."""

import re
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection import (
    MaskRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops.misc import FrozenBatchNorm2d

from botvision.config import DetectorConfig
from botvision.detection import build_detector
from botvision.detection.weights import load_detector_weights
from botvision.errors import UserError
from commandline import train_config

COCO = tuple(
    name for name in MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:] if name != "N/A"
)
SIZE = 128


def recipe(version):
    """Return norm and detector settings for torchvision's first or second version."""
    config = train_config("shapes", "--recipe", f"finetune_v{version}")
    assert (config.model, config.weights) == ("resnet50", NAMES[version])
    return {"norm": config.norm, "config": replace(config.detector, score_threshold=0.0)}


NAMES = {1: "maskrcnn_resnet50_fpn", 2: "maskrcnn_resnet50_fpn_v2"}


def randomise(model):
    """Set all weights and statistics to different values, as in a trained model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() == 1:
                tensor.normal_(std=0.1, generator=generator)
    return model.eval()


def theirs(version):
    """torchvision's Mask R-CNN, which does not resize images of ``SIZE`` pixels."""
    torch.manual_seed(0)
    options = {"min_size": SIZE, "max_size": SIZE, "box_score_thresh": 0.0}
    if version == 2:
        return randomise(maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options))
    # As torchvision builds it for its COCO weights: frozen batch norm without epsilon.
    backbone = torchvision.models.detection.backbone_utils._resnet_fpn_extractor(
        torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d), 3
    )
    model = torchvision.models.detection.MaskRCNN(backbone, 91, **options)
    overwrite_eps(model, 0.0)
    return randomise(model)


def as_published(state):
    """Return the first version's parameter names, which torchvision still accepts."""
    old = {}
    for name, tensor in state.items():
        name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
        name = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
        name = re.sub(
            r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name
        )
        old[name] = tensor
    return old


@pytest.mark.parametrize("version", [1, 2])
def test_the_resnet_twin_takes_all_of_torchvisions_and_detects_the_same(version, tmp_path):
    model = theirs(version)
    state = model.state_dict()
    if version == 1:
        state = as_published(state)
        model.load_state_dict(state)  # torchvision accepts these names
    file = tmp_path / "maskrcnn_resnet50_fpn_coco-0.pth"
    file = file if version == 1 else tmp_path / "v2.pth"
    torch.save(state, file)
    ours = build_detector("resnet50", len(COCO), SIZE, **recipe(version)).eval()
    report = load_detector_weights(ours, file, COCO)
    assert report.tensors.new == report.tensors.ignored == report.new == report.unused == []
    assert report.kept == list(COCO)

    image = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    image = image.to(torch.uint8)
    with torch.inference_mode():
        (found,) = ours([image])
        (want,) = model([image / 255])
    # Their labels are COCO's ids, with gaps for the 11 "N/A". Ours have no gaps.
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    named = torch.tensor([names[label] != "N/A" for label in want["labels"].tolist()])
    assert named.sum() > 10
    # With random classifiers, an "N/A" may be among the 100 best.
    count = int(named.sum()) if named.all() else min(len(found["scores"]), 10)
    for key in ("boxes", "scores"):
        torch.testing.assert_close(
            found[key][:count], want[key][named][:count], rtol=1e-3, atol=1e-3
        )
    got = [COCO[label - 1] for label in found["labels"][:count].tolist()]
    assert got == [names[label] for label in want["labels"][named][:count].tolist()]


def test_a_botnet_takes_all_but_the_attention(tmp_path):
    torch.save(theirs(2).state_dict(), tmp_path / "v2.pth")
    ours = build_detector("botnet50", 80, SIZE, **recipe(2))
    report = load_detector_weights(ours, tmp_path / "v2.pth", COCO)
    assert all(".layer4." in n and ".conv2." in n for n in report.tensors.new)
    assert len(report.tensors.new) == 9
    assert report.tensors.ignored == [f"backbone.body.layer4.{i}.conv2.weight" for i in range(3)]


SMALL = DetectorConfig(fpn_channels=16, box_head_dim=32, mask_convs=1, mask_channels=16)
TINY = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}


def small(classes, task="segmentation", model="botnet50", **options):
    detector = build_detector(
        model, classes, 64, task=task, config=SMALL, model_args=TINY, **options
    )
    return randomise(detector)


def saved(detector, names, path):
    card = {"botvision": f'{{"categories": {{"names": {list(names)}}}}}'.replace("'", '"')}
    tensors = {k: v.clone().contiguous() for k, v in detector.state_dict().items()}
    save_file(tensors, path, metadata=card)


def test_rows_of_known_classes_are_kept_by_name_and_others_stay_as_drawn(tmp_path):
    first = small(3)
    saved(first, ("cat", "dog", "cow"), tmp_path / "best.safetensors")
    second = small(2)
    before = {k: v.clone() for k, v in second.state_dict().items()}
    report = load_detector_weights(second, tmp_path, ("cow", "owl"))
    assert (report.kept, report.new, report.unused) == (["cow"], ["owl"], ["cat", "dog"])
    assert "classes with weights in the file: cow" in str(report)
    assert "new classes with random weights: owl" in str(report)
    assert "unused classes of the file: cat, dog" in str(report)
    after, source = second.state_dict(), first.state_dict()
    for part, size in (
        ("box_predictor.cls_score", 1),
        ("box_predictor.bbox_pred", 4),
        ("mask_predictor.mask_fcn_logits", 1),
    ):
        for kind in ("weight", "bias"):
            name = f"roi_heads.{part}.{kind}"
            got, theirs_, drawn = (t[name].split(size) for t in (after, source, before))
            assert torch.equal(got[0], theirs_[0])  # background
            assert torch.equal(got[1], theirs_[3])  # cow
            assert torch.equal(got[2], drawn[2])  # owl
    predictors = ("box_predictor", "mask_fcn_logits")
    for name, tensor in after.items():
        if not any(p in name for p in predictors):
            assert torch.equal(tensor, source[name]), name


def test_faster_and_mask_rcnn_exchange_all_but_the_mask_branch(tmp_path):
    saved(small(2, task="detection"), ("cat", "dog"), tmp_path / "boxes.safetensors")
    saved(small(2), ("cat", "dog"), tmp_path / "masks.safetensors")
    report = load_detector_weights(small(2), tmp_path / "boxes.safetensors", ("cat", "dog"))
    assert report.tensors.new
    assert all(name.startswith("roi_heads.mask_") for name in report.tensors.new)
    report = load_detector_weights(
        small(2, task="detection"), tmp_path / "masks.safetensors", ("cat", "dog")
    )
    assert report.tensors.new == []
    assert all(name.startswith("roi_heads.mask_") for name in report.tensors.ignored)


@pytest.mark.parametrize(
    ("model", "resnet"), [("resnet50_bot_c4", "resnet50"), ("botnet18", "resnet18")]
)
def test_the_ablations_take_a_resnets_detector_but_for_their_new_blocks(model, resnet, tmp_path):
    args = {"layers": (1, 1, 2, 2), "channels": (16, 16, 32, 32)}
    twin = build_detector(resnet, 2, 64, config=SMALL, model_args=args)
    if resnet == "resnet18":  # whose c5 is half as wide as a bottleneck's
        twin.backbone.fpn = build_detector(model, 2, 64, config=SMALL, model_args=args).backbone.fpn
    saved(twin, ("cat", "dog"), tmp_path / "twin.safetensors")
    detector = build_detector(model, 2, 64, config=SMALL, model_args=args)
    report = load_detector_weights(detector, tmp_path / "twin.safetensors", ("cat", "dog"))
    part = "backbone.body." + ("layer4." if resnet == "resnet18" else "layer3.bot.")
    own = {n for n in detector.state_dict() if n.startswith(part) and "tracked" not in n}
    assert set(report.tensors.new) == own


def test_a_backbone_goes_into_the_body_alone(tmp_path):
    body = timm.create_model("resnet50", block=timm.models.resnet.Bottleneck, **TINY)
    torch.save(body.state_dict(), tmp_path / "resnet.pth")
    report = load_detector_weights(small(2), tmp_path / "resnet.pth", ("cat", "dog"))
    assert report.new == [
        f"layer4.0.conv2.{n}" for n in ("qkv.weight", "pos_embed.height_rel", "pos_embed.width_rel")
    ]


def test_a_detector_of_other_settings_is_refused_with_the_settings_to_give(tmp_path):
    torch.save(theirs(2).state_dict(), tmp_path / "v2.pth")
    with pytest.raises(UserError) as error:
        load_detector_weights(
            build_detector("resnet50", 2, SIZE, norm="frozen"), tmp_path / "v2.pth", ("cat", "dog")
        )
    assert str(error.value).endswith(
        "it was trained with `norm` plain, `detector.rpn_convs` 2, `detector.box_convs` 4, "
        "`detector.head_norm` True"
    )
    assert "\n" not in str(error.value)


def test_classes_of_an_unknown_file_are_new(tmp_path):
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    state = model.state_dict()
    torch.save({k: v for k, v in state.items() if "tracked" not in k}, tmp_path / "own.pth")
    detector = build_detector("resnet50", 2, SIZE, task="detection", norm="frozen")
    report = load_detector_weights(detector, tmp_path / "own.pth", ("cat", "dog"))
    assert (report.kept, report.new) == ([], ["cat", "dog"])


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "resnet50.a1_in1k"])
def test_weights_that_cannot_be_fetched(name, tmp_path, monkeypatch):
    """Without a network connection, the message is one line with a remedy."""

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(UserError, match=rf"weights {name}: .*no network.*file") as error:
        load_detector_weights(torch.nn.Module(), name, ("cat",))
    assert "\n" not in str(error.value)


def test_a_name_of_torchvision_takes_its_classes(monkeypatch):
    state = as_published(theirs(1).state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: state)
    ours = build_detector("resnet50", 2, SIZE, norm="frozen")
    report = load_detector_weights(ours, "maskrcnn_resnet50_fpn", ("zebra", "quagga"))
    assert (report.kept, report.new) == (["zebra"], ["quagga"])
    row = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"].index("zebra")
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(ours.state_dict()[name][1], state[name][row])
    variance = "backbone.body.bn1.running_var"
    torch.testing.assert_close(ours.state_dict()[variance] + 1e-5, state[variance])
