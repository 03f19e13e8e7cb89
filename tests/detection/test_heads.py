"""The parts of the detector: padding, dtypes and a custom box head."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from botvision.config import DetectorConfig
from botvision.detection import Detector, build_detector
from botvision.detection.heads import BoxPredictor, MaskHead, MaskPredictor, RoIHeads, RPNHead
from botvision.errors import UserError

TINY = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
CHANNELS = 16


def build(task="detection", box_head=None, **settings):
    config = DetectorConfig(
        fpn_channels=CHANNELS,
        anchor_sizes=(8, 16, 32, 64, 128),
        rpn_pre_nms=(60, 60),
        rpn_post_nms=(30, 30),
        roi_samples=32,
        box_head_dim=32,
        mask_convs=1,
        mask_channels=16,
        **settings,
    )
    return build_detector(
        "resnet50", 3, 64, task=task, config=config, model_args=TINY, box_head=box_head
    )


@pytest.mark.parametrize(
    ("padded", "plain", "args", "size"),
    [
        (MaskHead, MaskRCNNHeads, (CHANNELS, [8, 8], 1), 14),
        (MaskPredictor, MaskRCNNPredictor, (CHANNELS, 8, 4), 14),
    ],
)
def test_rows_are_padded_and_cut_by_each_part_on_its_own(padded, plain, args, size):
    torch.manual_seed(0)
    part, reference = padded(*args), plain(*args)
    reference.load_state_dict(part.state_dict())
    seen = []
    part[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    before = dict(part.__dict__)
    for rows in (0, 1, 16, 17):
        x = torch.randn(rows, CHANNELS, size, size, requires_grad=True)
        got, want = part(x), reference(x)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)]
        torch.testing.assert_close(*grads)
    assert seen == [0, 16, 16, 32]
    assert part.__dict__ == before


def test_with_batch_norm_nothing_is_padded():
    """The zeros would change the statistics of batch norm."""
    heads = build("segmentation", head_norm=True).roi_heads
    assert type(heads.mask_head) is MaskRCNNHeads
    assert type(heads.mask_predictor) is MaskRCNNPredictor
    heads = build("segmentation").roi_heads
    assert type(heads.mask_head) is MaskHead
    assert type(heads.mask_predictor) is MaskPredictor


def test_scores_and_deltas_are_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels = RPNHead(CHANNELS, 3)([torch.randn(1, CHANNELS, size, size) for size in (8, 4)])
        outputs = BoxPredictor(32, 4)(torch.randn(2, 32))
    assert {level.dtype for part in levels for level in part} == {torch.float32}
    assert {output.dtype for output in outputs} == {torch.float32}


@pytest.mark.parametrize("counts", [(40, 0, 25), (0, 0, 0)])
def test_detections_are_selected_as_torchvision_selects_them(counts):
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(sum(counts), 2, generator=random) * 50
    sides = torch.rand(sum(counts), 2, generator=random) * 40
    proposals = list(torch.cat([corners, corners + sides], dim=1).split(counts))
    logits = torch.randn(sum(counts), 4, generator=random) * 3
    deltas = torch.randn(sum(counts), 16, generator=random)
    args = (logits, deltas, proposals, [(64, 64), (30, 64), (64, 20)])
    heads = build().roi_heads
    for threshold, limit in ((0.0, 100), (0.3, 100), (0.05, 5), (1.0, 5)):
        got = heads.postprocess_detections(*args, threshold, limit)
        heads.score_thresh, heads.detections_per_img = threshold, limit
        wanted = super(RoIHeads, heads).postprocess_detections(*args)
        for ours, theirs in zip(got, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert all(a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
        if threshold == 0:
            assert [len(scores) > 5 for scores in got[1]] == [count > 0 for count in counts]
        assert all(map(torch.equal, got[1], heads.postprocess_detections(*args)[1]))


def test_what_a_detector_says_of_itself():
    detector = build("segmentation")
    assert isinstance(detector, Detector)
    assert (detector.image_size, detector.num_classes, detector.has_masks) == (64, 3, True)
    assert not build().has_masks


def box_head(width=24):
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8 * 7 * 7, width),
    )


def test_a_box_head_from_outside_trains_and_detects():
    torch.manual_seed(0)
    head = box_head()
    detector = build(box_head=head)
    assert detector.roi_heads.box_head is head
    assert detector.roi_heads.box_predictor.cls_score.in_features == 24
    assert detector.roi_heads.box_predictor.bbox_pred.in_features == 24
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    target = {"boxes": torch.tensor([[10.0, 10, 40, 40]]), "labels": torch.tensor([2])}
    losses = detector([image], [target])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    with torch.inference_mode():
        (found,) = detector.eval()([image], score_threshold=0.0)
    assert len(found["boxes"]) > 0


def test_finding_the_width_leaves_the_box_head_as_it_was():
    head = box_head().train()
    head[1].eval()
    modes = [part.training for part in head.modules()]
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    build(box_head=head)
    assert [part.training for part in head.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())
    assert all(parameter.grad is None for parameter in head.parameters())


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x.flatten(1), x


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Identity(), r"returns \(2, 16, 7, 7\) for regions \(2, 16, 7, 7\); return .*\(N, wid"),
        (nn.Flatten(0), r"returns \(1568,\) for "),
        (TwoOutputs(), "returns tuple for "),
        (nn.Flatten(0, 1), r"returns \(32, 7, 7\) for "),
        (nn.Conv2d(8, 8, 3), r"does not run on \(2, 16, 7, 7\) \("),
    ],
)
def test_a_box_head_of_another_shape_is_one_line(head, message):
    with pytest.raises(UserError, match=f"^box_head: {message}") as error:
        build(box_head=head)
    assert error.value.parameter == "box_head"
    assert "\n" not in str(error.value)
    assert head.training
