"""Merged detections of several views, compared with the positions of the drawn objects."""

import copy
import dataclasses
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from botvision.config import DetectorConfig
from botvision.data.transforms import fit_image
from botvision.detection import build_detector
from botvision.detection.inference import detect
from botvision.detection.tta import TTA
from botvision.errors import UserError
from botvision.evaluation.coco import encode_mask

TINY = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}


class Finder(nn.Module):
    """Finds the bright area of each color channel, as classes 1 to 3, best first.

    Like a real detector, it finds nothing smaller than 4 pixels. Scores increase with each view.
    """

    def __init__(self, size, largest=1000):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(()))
        self.image_size = size
        self.roi_heads = SimpleNamespace(nms_thresh=0.5, detections_per_img=100)
        self.largest = largest
        self.calls = []
        self.seen = 0

    def forward(self, images, *, score_threshold, max_detections, canvas_size):
        self.calls.append((canvas_size, len(images)))
        if canvas_size > self.largest:
            raise AssertionError(f"takes {self.largest} pixels at most\nand more of it")
        assert all(max(image.shape[1:]) <= canvas_size for image in images)
        return [self.find(image) for image in images]

    def find(self, image):
        assert image.dtype == torch.uint8
        self.seen += 1
        found = {"boxes": [], "labels": [], "scores": [], "masks": []}
        for channel in (2, 1, 0):
            plane = image[channel]
            rows, columns = (torch.nonzero((plane > 127).any(dim=d))[:, 0] for d in (1, 0))
            if min(len(rows), len(columns)) < 4:
                continue
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            x0, y0, x1, y1 = map(int, box)
            patch = plane[None, None, y0:y1, x0:x1] / 255.0
            found["boxes"].append([float(n) for n in box])
            found["labels"].append(channel + 1)
            found["scores"].append(0.5 + self.seen / 1000 + channel / 10000)
            found["masks"].append(nn.functional.interpolate(patch, (28, 28), mode="bilinear")[0])
        masks = found.pop("masks")
        out = {name: torch.tensor(value) for name, value in found.items()}
        out["boxes"], out["labels"] = out["boxes"].reshape(-1, 4), out["labels"].long()
        return {**out, "masks": torch.stack(masks) if masks else torch.zeros(0, 1, 28, 28)}


def picture(width, height, *boxes):
    """Return a black image with one bright box in each color channel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1, channel] = 255
    return Image.fromarray(pixels)


def located(detection):
    """Return the boxes by label. Every label occurs once."""
    labels = detection["labels"].tolist()
    assert len(set(labels)) == len(labels), labels
    return dict(zip(labels, detection["boxes"].tolist(), strict=True))


def config(**more):
    return DetectorConfig(
        fpn_channels=16,
        anchor_sizes=(8, 16, 32, 64, 128),
        rpn_pre_nms=(100, 100),
        rpn_post_nms=(50, 50),
        box_head_dim=32,
        mask_convs=1,
        mask_channels=16,
        score_threshold=0.0,
        max_detections=20,
        **more,
    )


@pytest.fixture(scope="module")
def untrained():
    """A real detector with random weights, for 64 px."""
    torch.manual_seed(0)
    return build_detector("botnet50", 3, 64, config=config(), model_args=TINY).eval()


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_one_view_is_what_the_detector_finds(untrained):
    image = noise(150, 100)
    with torch.inference_mode():
        (want,) = untrained([fit_image(image, 64)])
    (got,) = detect(untrained, [image])
    assert len(got["boxes"]) > 5
    for name in ("labels", "scores", "masks"):
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=0)
    # The detector runs on 64 x 43 pixels.
    scale = torch.tensor([150 / 64, 100 / 43, 150 / 64, 100 / 43], dtype=torch.float64)
    assert got["boxes"].dtype == torch.float64
    torch.testing.assert_close(got["boxes"], want["boxes"] * scale, rtol=1e-6, atol=0)


def test_what_one_view_gives_is_left_as_it_is():
    finder = Finder(64)
    finder.roi_heads.nms_thresh = 0.0
    finder.roi_heads.detections_per_img = 1
    (got,) = detect(finder, [picture(64, 64, (5, 5, 20, 20), (9, 9, 30, 30))])
    assert located(got) == {2: [9, 9, 30, 30], 1: [5, 5, 20, 20]}


def test_an_image_does_not_depend_on_its_batch(untrained):
    images = [noise(150, 100), noise(40, 70, 1), noise(64, 64, 2)]
    tta = TTA(flip=True, scales=(1.0, 1.5))
    together = detect(untrained, images, tta=tta, batch_size=5)
    for image, got in zip(images, together, strict=True):
        (alone,) = detect(untrained, [image], tta=tta)
        assert len(alone["boxes"]) == 20
        for name, value in alone.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)


def test_a_mirrored_view_finds_the_same_place_and_shape():
    # A triangle whose right angle is at the lower left.
    size, top, left, side = (90, 120), 20, 30, 60
    truth = np.zeros(size, np.uint8)
    truth[top : top + side, left : left + side] = np.tri(side)
    image = Image.fromarray(np.stack([truth * 255] * 3, axis=-1))
    for flip in (False, True):
        finder = Finder(120)
        (got,) = detect(finder, [image], tta=TTA(flip=flip))
        # The mirrored view, which comes last, has the highest score.
        assert finder.seen == 1 + flip
        assert got["scores"][-1].item() == pytest.approx(0.5 + finder.seen / 1000)
        assert got["labels"].tolist() == [3, 2, 1]
        for mask, box in zip(got["masks"], got["boxes"], strict=True):
            assert box.tolist() == [left, top, left + side, top + side]
            found = coco_mask.decode(encode_mask(mask[0].numpy(), box.numpy(), size))
            assert (found & truth).sum() / (found | truth).sum() > 0.93


def test_scales_are_seen_on_canvases_that_they_fit():
    finder = Finder(64)
    boxes = [(20, 20, 120, 60), (10, 80, 60, 140), (150, 5, 190, 45)]
    (got,) = detect(finder, [picture(200, 150, *boxes)], tta=TTA(scales=(0.5, 1.0, 1.5, 2.5)))
    assert finder.calls == [(64, 1), (64, 1), (128, 1), (192, 1)]
    assert finder.image_size == 64
    for label, box in located(got).items():
        np.testing.assert_allclose(box, boxes[label - 1], atol=200 / 64 / 2.5)


def test_a_real_detector_runs_at_other_scales(untrained):
    (small, large) = (detect(untrained, [noise(90, 80)], tta=TTA(scales=(s,))) for s in (0.5, 3))
    for (found,) in (small, large):
        assert len(found["boxes"]) > 0
        assert torch.isfinite(found["boxes"]).all() and torch.isfinite(found["scores"]).all()
        assert (found["boxes"] <= torch.tensor([90, 80, 90, 80]) + 1e-4).all()
    assert untrained.image_size == 64


def test_a_model_that_takes_no_larger_canvas_is_one_line():
    finder = Finder(64, largest=64)
    with pytest.raises(UserError) as error:
        detect(finder, [noise(64, 64)], tta=TTA(scales=(1.5,)))
    assert str(error.value) == (
        "scales: the model does not run on 128x128 pixels instead of its 64x64 "
        "(takes 64 pixels at most); give smaller scales"
    )
    assert finder.image_size == 64
    finder.image_size = 96
    with pytest.raises(AssertionError, match="takes 64"):
        detect(finder, [noise(64, 64)])


def test_tiles_find_what_a_border_cuts_and_what_no_tile_holds():
    # The first box is on the border of tiles of 64 at 0, 48, 96, ... The second is anywhere. Both
    # are too small to be found in the view of the whole image. The third is larger than a tile.
    boxes = [(60, 40, 68, 50), (300, 200, 306, 206), (100, 20, 300, 150)]
    finder = Finder(64)
    (got,) = detect(finder, [picture(400, 256, *boxes)], tta=TTA(tile=64), batch_size=4)
    found = located(got)
    assert found[1] == list(boxes[0])
    assert found[2] == list(boxes[1])
    np.testing.assert_allclose(found[3], boxes[2], atol=400 / 64)
    # 8 by 5 tiles and the whole image.
    assert finder.seen == 41
    assert max(images for _, images in finder.calls) == 4


def test_a_box_at_the_border_of_the_image_stays():
    boxes = [(0, 40, 7, 50), (113, 0, 120, 7), (40, 93, 50, 100)]
    (got,) = detect(Finder(64), [picture(120, 100, *boxes)], tta=TTA(tile=64, flip=True))
    assert located(got) == {n + 1: list(box) for n, box in enumerate(boxes)}


def test_views_are_merged_class_by_class_the_best_first():
    finder = Finder(64)
    same = (10, 10, 40, 40)
    tta = TTA(flip=True, scales=(1.0, 0.5))
    (got,) = detect(finder, [picture(64, 64, same, same, (44, 44, 60, 60))], tta=tta)
    assert finder.seen == 4
    assert got["labels"].tolist() == [3, 2, 1]
    assert got["scores"].tolist() == sorted(got["scores"].tolist(), reverse=True)
    finder.roi_heads.detections_per_img = 2
    (got,) = detect(finder, [picture(64, 64, same, same, (44, 44, 60, 60))], tta=tta)
    assert got["labels"].tolist() == [3, 2]
    finder.roi_heads.nms_thresh = 1.0
    finder.roi_heads.detections_per_img = 100
    (got,) = detect(finder, [picture(64, 64, same)], tta=tta)
    assert len(got["boxes"]) == 4


def test_nothing_in_any_view_is_nothing():
    (got,) = detect(Finder(64), [picture(200, 100)], tta=TTA(tile=64, flip=True))
    assert {name: tuple(value.shape) for name, value in got.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 1, 28, 28),
    }


def everything(model):
    """Return the state, plain attributes and number of hooks of all modules, pickled."""
    return {
        (name, key): pickle.dumps(value if not key.endswith("_hooks") else len(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "_modules"
    }


SETTINGS = {
    "score_threshold": 0.01,
    "max_detections": 7,
    "tta": TTA(flip=True, scales=(1.0, 2.0), tile=48),
    "batch_size": 3,
}


def test_detecting_changes_nothing_about_the_detector(untrained):
    before = everything(untrained)
    assert {("transform", "size"), ("roi_heads", "score_thresh")} <= before.keys()
    (found,) = detect(untrained, [noise(90, 80)], **SETTINGS)
    assert len(found["boxes"]) == 7
    assert everything(untrained) == before


@pytest.mark.parametrize("part", ["backbone", "roi_heads.mask_predictor"])
def test_nor_does_a_failure(untrained, part):
    def fail(module, inputs):
        raise RuntimeError(reason)

    reason = "too small"
    before = everything(untrained)
    handle = untrained.get_submodule(part).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="too small"):
        detect(untrained, [noise(90, 80)], **SETTINGS)
    with pytest.raises(UserError, match=r"^scales: .* on 128x128 .*\(too small\)"):
        detect(untrained, [noise(90, 80)], tta=TTA(scales=(2.0,)))
    reason = "out of memory"  # for which the scales are not to blame
    with pytest.raises(RuntimeError, match="out of memory"):
        detect(untrained, [noise(90, 80)], tta=TTA(scales=(2.0,)))
    handle.remove()
    assert everything(untrained) == before


def test_settings_of_a_call_are_those_of_a_detector_built_with_them(untrained):
    image = noise(90, 80)
    (plain,) = detect(untrained, [image])
    middle = float(plain["scores"].median())
    for settings in ({"score_threshold": middle}, {"max_detections": 3}, {"max_detections": 40}):
        built = build_detector(
            "botnet50", 3, 64, config=dataclasses.replace(config(), **settings), model_args=TINY
        ).eval()
        built.load_state_dict(untrained.state_dict())
        (want,), (got,) = detect(built, [image]), detect(untrained, [image], **settings)
        assert 0 < len(got["boxes"]) != len(plain["boxes"])
        for name, value in want.items():
            assert torch.equal(got[name], value)


def test_none_are_the_detectors_own_settings(untrained):
    own = {"score_threshold": 0.0, "max_detections": 20}
    (want,), (got,) = detect(untrained, [noise(90, 80)]), detect(untrained, [noise(90, 80)], **own)
    assert len(got["boxes"]) == 20
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_another_canvas_is_that_of_a_larger_detector():
    """With a ResNet, which has no position tables."""
    torch.manual_seed(0)
    small, large = (
        build_detector("resnet50", 3, size, config=config(), model_args=TINY).eval()
        for size in (64, 128)
    )
    large.load_state_dict(small.state_dict())
    pixels = [fit_image(noise(120, 90), 120)]
    with torch.inference_mode():
        (want,), (got,) = large(pixels), small(pixels, canvas_size=128)
        with pytest.raises(ValueError, match="exceeds the canvas of 64"):
            small(pixels)
    assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_threshold": 1.5}, "^score_threshold 1.5: give a number from 0 to 1"),
        ({"score_threshold": -0.1}, "^score_threshold -0.1: "),
        ({"score_threshold": float("nan")}, "^score_threshold nan: "),
        ({"max_detections": 0}, "^max_detections 0: must be at least 1"),
    ],
)
def test_senseless_settings_are_an_error(settings, message):
    finder = Finder(64)
    with pytest.raises(UserError, match=message) as error:
        detect(finder, [noise(64, 64)], **settings)
    assert error.value.parameter == next(iter(settings))
    assert finder.calls == []


def test_a_sharded_detector_takes_settings_too():
    torch.manual_seed(0)
    detector = build_detector("botnet50", 3, 64, config=config(), model_args=TINY).eval()
    images = [noise(90, 80)]
    (want,) = detect(detector, images, **SETTINGS)
    group = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("gloo", **group)
    try:
        detector.to(memory_format=torch.contiguous_format)
        for part in (detector.roi_heads, detector):
            fully_shard(part, mesh=init_device_mesh("cpu", (1,)))
        (got,) = detect(detector, images, **SETTINGS)
    finally:
        torch.distributed.destroy_process_group()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)


def test_a_detector_with_a_compiled_backbone_takes_settings_too(untrained):
    compiled = copy.deepcopy(untrained)
    compiled.backbone.compile(backend="eager")
    (want,), (got,) = (detect(d, [noise(90, 80)], **SETTINGS) for d in (untrained, compiled))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)
