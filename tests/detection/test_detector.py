"""The detector: canvas, RoIAlign scales, batch norm, backbones and the paper's defaults."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou as torchvision_iou
from torchvision.ops import roi_align
from torchvision.ops.misc import FrozenBatchNorm2d

from botvision.attention import RelativeAttention2d
from botvision.config import DetectorConfig
from botvision.detection import build_detector
from botvision.detection.anchors import box_iou
from botvision.detection.heads import PaddedRows
from botvision.errors import UserError

TINY = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
INSERTED = {**TINY, "layers": (1, 1, 2, 2)}
SMALL = DetectorConfig(
    fpn_channels=16,
    anchor_sizes=(8, 16, 32, 64, 128),
    rpn_pre_nms=(100, 100),
    rpn_post_nms=(50, 50),
    roi_samples=32,
    box_head_dim=32,
    mask_convs=1,
    mask_channels=16,
)


def small(task="segmentation", model="botnet50", norm="plain", args=TINY, size=128):
    return build_detector(model, 3, size, task=task, norm=norm, config=SMALL, model_args=args)


def sample(size=(96, 128), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(2, *size, dtype=torch.uint8)
    masks[0, 10:40, 20:60] = 1
    masks[1, 50:90, 30:70] = 1
    return image, {
        "boxes": torch.tensor([[20.0, 10, 60, 40], [30, 50, 70, 90]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
    }


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("botnet50", TINY),
        ("botnet50_s1", TINY),
        ("botnet18", TINY),
        ("resnet50_bot_c4_c5", INSERTED),
        ("resnet50_nl_c4", INSERTED),
        ("resnet18", {}),
        ("resnest14d", {}),
        ("convnext_atto", {}),
    ],
)
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_trains_and_detects_on_any_pyramid(model, args, task):
    detector = small(task, model, args=args)
    image, target = sample()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 80, dtype=torch.uint8),
    }
    losses = detector([image, image[:, :64, :80]], [target, empty])
    wanted = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == wanted | ({"loss_mask"} if task == "segmentation" else set())
    sum(losses.values()).backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None]
    assert without == []
    detector.eval()
    (found,) = detector([image])
    assert ("masks" in found) == (task == "segmentation")
    assert (found["boxes"][:, 2::2] <= 128).all()
    assert (found["boxes"][:, 1::2] <= 96).all()
    if task == "segmentation":
        assert found["masks"].shape[1:] == (1, 28, 28)


def test_a_result_does_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    detector = small().eval()
    first, _ = sample((96, 128))
    second, _ = sample((128, 50), seed=1)
    alone = detector([first])[0]
    together = detector([first, second])[0]
    assert len(alone["boxes"]) > 0
    for name in alone:
        torch.testing.assert_close(together[name], alone[name])


def test_the_canvas_is_normalized_and_then_padded_with_zeros():
    detector = small()
    image, _ = sample((96, 100))
    images, _ = detector.transform([image])
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(images.tensors[0, :, :96, :100], (image / 255 - mean) / std)
    assert images.tensors[0, :, 96:].abs().max() == 0
    assert images.tensors[0, :, :, 100:].abs().max() == 0
    assert images.image_sizes == [(96, 100)]
    with pytest.raises(ValueError, match="an image of 96x130 exceeds the canvas of 128"):
        detector.transform([torch.zeros(3, 96, 130, dtype=torch.uint8)])


def test_roi_align_uses_the_pyramids_strides_whatever_the_first_image():
    """torchvision infers the scale from the first image, which is wrong on a padded canvas."""
    detector = small()
    pool = detector.roi_heads.box_roi_pool
    features = {str(i): torch.randn(1, 16, 128 >> (2 + i), 128 >> (2 + i)) for i in range(4)}
    boxes = [torch.tensor([[4.0, 6, 40, 30]])]
    got = pool(features, boxes, [(32, 128)])
    want = roi_align(features["0"], boxes, 7, spatial_scale=1 / 4, sampling_ratio=2)
    torch.testing.assert_close(got, want)


def test_boxes_are_exact_to_the_pixel_under_autocast():
    torch.manual_seed(0)
    detector = small(task="detection")
    image, target = sample()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector([image], [target])
        detector.eval()
        features = detector.backbone(detector.transform([image])[0].tensors)
        boxes = detector([image])[0]["boxes"]
    assert all(level.dtype == torch.bfloat16 for level in list(features.values())[:4])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert boxes.dtype == torch.float32
    rounded = boxes.bfloat16().float() == boxes
    assert len(boxes) > 5
    assert rounded.float().mean() < 0.5


def test_anchors_are_exact_under_autocast():
    """The anchors equal torchvision's in float32. From bf16 features it would round their sides."""
    detector = small(size=512)
    images = detector.transform([torch.zeros(3, 512, 512, dtype=torch.uint8)])[0]
    seen = {}
    keep = detector.rpn.anchor_generator.register_forward_hook
    keep(lambda module, inputs, anchors: seen.update(anchors=anchors[0], maps=inputs[1]))
    detector.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        features = detector.backbone(images.tensors)
        detector.rpn(images, features)
    assert seen["maps"][0].dtype == torch.bfloat16
    ours = detector.rpn.anchor_generator
    theirs = AnchorGenerator(ours.sizes, ours.aspect_ratios)
    (want,) = theirs(images, [level.float() for level in seen["maps"]])
    assert torch.equal(seen["anchors"], want)
    assert not torch.equal(want.bfloat16().float(), want)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_iou_is_torchvisions_to_the_bit(n, m, seed):
    random = torch.Generator().manual_seed(seed)

    def draw(count):
        corners = torch.rand(count, 2, generator=random) * 500
        return torch.cat([corners, corners + torch.rand(count, 2, generator=random) * 200], dim=1)

    boxes, others = draw(n), draw(m)
    assert torch.equal(box_iou(boxes, others), torchvision_iou(boxes, others))


def test_filling_up_the_mask_heads_batch_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    detector = small(norm="frozen")
    image, target = sample()
    seen = []
    detector.roi_heads.mask_head[0].register_forward_hook(lambda m, i, o: seen.append(len(o)))
    results = []
    for multiple in (16, 1):
        monkeypatch.setattr(PaddedRows, "multiple", multiple)
        torch.manual_seed(0)
        detector.train().zero_grad()
        loss = detector([image], [target])["loss_mask"]
        loss.backward()
        grads = [p.grad.clone() for p in detector.roi_heads.mask_head.parameters()]
        found = detector.eval()([image])[0]["masks"]
        assert len(found) > 0
        results.append([loss, *grads, found])
    assert seen[0] % 16 == seen[1] % 16 == 0
    assert seen[2] % 16 != 0
    for filled, plain in zip(*results, strict=True):
        torch.testing.assert_close(filled, plain)


def test_norms():
    def kinds(detector):
        return {type(m) for m in detector.modules() if "BatchNorm" in type(m).__name__}

    plain, frozen = small(), small(norm="frozen")
    assert kinds(plain) >= {nn.BatchNorm2d}
    assert kinds(plain.backbone.fpn) == {nn.BatchNorm2d}
    assert kinds(plain.roi_heads) == kinds(plain.rpn) == set()
    assert nn.BatchNorm2d not in kinds(frozen)
    assert any("Frozen" in kind.__name__ or kind is FrozenBatchNorm2d for kind in kinds(frozen))
    before = {k: v.clone() for k, v in frozen.backbone.body.named_buffers()}
    image, target = sample()
    frozen.train()([image], [target])
    after = dict(frozen.backbone.body.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_attention_slices_its_tables_in_a_detector():
    layers = [m for m in small().modules() if isinstance(m, RelativeAttention2d)]
    assert [layer.pos_embed.table_resize for layer in layers] == ["slice"]
    assert layers[0].pos_embed.height_rel.shape[0] == 2 * 8 - 1


def test_inserted_attention_slices_its_tables_too():
    detector = small(model="resnet50_bot_c4_c5", args=INSERTED)
    layers = [m for m in detector.modules() if isinstance(m, RelativeAttention2d)]
    assert [layer.pos_embed.table_resize for layer in layers] == ["slice", "slice"]
    assert [layer.pos_embed.height_rel.shape[0] for layer in layers] == [2 * 8 - 1, 2 * 4 - 1]


@pytest.mark.parametrize(
    ("model", "args", "part", "last"),
    [
        ("resnet50_bot_c4", INSERTED, "layer3.bot", "bn3"),
        ("resnet50_nl_c4", INSERTED, "layer3.nl", "norm"),
        ("botnet18", TINY, "layer4", "0.bn3"),
    ],
)
def test_new_blocks_keep_their_batch_norm_where_the_rest_is_frozen(model, args, part, last):
    """Their last scale is zero, so a frozen block would never have an effect."""
    body = small(model=model, args=args, norm="frozen").backbone.body
    norms = {n for n, m in body.named_modules() if "BatchNorm" in type(m).__name__}
    plain = {n for n, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert plain == {n for n in norms if n.startswith(f"{part}.")} != norms
    x = torch.randn(2, 3, 128, 128)
    sum(level.square().sum() for level in body.train()(x)).backward()
    assert body.get_submodule(f"{part}.{last}").weight.grad.abs().max() > 0


def test_defaults_are_those_of_the_papers_code_base():
    """Compares each default with the Mask R-CNN configuration of that code base."""
    with torch.device("meta"):
        detector = build_detector("botnet50", 80, 1024)
    rpn, heads = detector.rpn, detector.roi_heads
    assert rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert set(rpn.anchor_generator.aspect_ratios[0]) == {1.0, 2.0, 0.5}
    assert len(rpn.head.conv) == 1
    assert rpn.head.conv[0][0].out_channels == 256
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert rpn.fg_bg_sampler.batch_size_per_image == 256
    assert rpn.fg_bg_sampler.positive_fraction == 0.5
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert rpn._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert rpn.nms_thresh == 0.7
    assert heads.fg_bg_sampler.batch_size_per_image == 512
    assert heads.fg_bg_sampler.positive_fraction == 0.25
    assert heads.proposal_matcher.high_threshold == heads.proposal_matcher.low_threshold == 0.5
    assert heads.box_head.fc6.in_features == 256 * 49
    assert heads.box_head.fc6.out_features == heads.box_head.fc7.out_features == 1024
    assert heads.box_predictor.cls_score.out_features == 81
    assert [m.out_channels for m in heads.mask_head.modules() if isinstance(m, nn.Conv2d)] == [
        256
    ] * 4
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert {
        m.out_channels for m in detector.backbone.fpn.modules() if isinstance(m, nn.Conv2d)
    } == {256}


def test_the_resnet_twin_differs_by_the_attention_alone():
    with torch.device("meta"):
        ours, twin = (build_detector(m, 1, 256) for m in ("botnet50", "resnet50"))
    shapes = [{k: v.shape for k, v in d.state_dict().items()} for d in (ours, twin)]
    different = {k for k in set(shapes[0]) ^ set(shapes[1])}
    assert all(".layer4." in k and ".conv2." in k for k in different)
    assert all(shapes[0][k] == shapes[1][k] for k in set(shapes[0]) & set(shapes[1]))
    assert timm.is_model("botnet50")


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_models_without_a_pyramid_are_refused(model):
    with pytest.raises(UserError, match=rf"^model {model}: .*resnet50"):
        small(model=model, args={}, size=224)
