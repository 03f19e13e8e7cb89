"""Extensions from outside the package: only public names, no registry.

An attention implementation, a dataset, a box head and an evaluator, for each task where it applies.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import botvision
from botvision import Categories, DetectionData, Objects, UserError
from botvision.attention import Implementation

SMALL = {
    "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]},
    "image_size": 64,
    "batch_size": 2,
    "max_steps": 2,
    "device": "cpu",
    "precision": "32",
    "workers": 0,
}
DETECTOR = {
    "fpn_channels": 16,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "rpn_pre_nms": [60, 60],
    "rpn_post_nms": [30, 30],
    "roi_samples": 16,
    "box_head_dim": 32,
    "mask_convs": 1,
    "mask_channels": 16,
}


def explicit(q, k, v, height_logits, width_logits, scale):
    """Compute softmax(q k^T + positions) v directly."""
    CALLS.append(q.shape)
    position = (height_logits.unsqueeze(-1) + width_logits.unsqueeze(-2)).flatten(-2)
    return (scale * q @ k.mT + position).softmax(-1).to(v.dtype) @ v


CALLS = []
IMPLEMENTATION = Implementation("explicit", explicit)


class Squares(DetectionData):
    """Images with one bright square each."""

    def __init__(self, count):
        self.count = count
        self.categories = Categories((7,), ("square",))

    def __len__(self):
        return self.count

    def _corner(self, index):
        return 5 + 3 * index % 30

    def image(self, index):
        pixels = np.full((60, 60, 3), 40, np.uint8)
        corner = self._corner(index)
        pixels[corner : corner + 20, corner : corner + 20] = 220
        return Image.fromarray(pixels)

    def objects(self, index):
        x0 = self._corner(index)
        x1 = x0 + 20
        box = np.array([[x0, x0, x1, x1]], np.float64)
        return Objects(box, np.array([7]), [[[x0, x0, x1, x0, x1, x1, x0, x1]]])


class ConvBoxHead(nn.Module):
    """A box head with one convolution and mean pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 24, kernel_size=3)

    def forward(self, regions):
        return self.conv(regions).relu().mean((2, 3))


class CountEvaluator:
    """The mean number of detections per image."""

    def reset(self):
        self.counts = []

    def update(self, predictions, batch):
        images, ids = batch
        assert len(images) == len(ids) == len(predictions)
        self.counts += [len(detection["boxes"]) for detection in predictions]

    def compute(self):
        self.metrics = {"detections_per_image": sum(self.counts) / len(self.counts)}
        return self.metrics

    def report(self, folder, console):
        (folder / "counts.json").write_text(json.dumps(self.counts))
        console.print("counted")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a detector trained with all four objects."""
    CALLS.clear()
    return botvision.train(
        {"train": Squares(5), "val": Squares(3)},
        model="botnet50",
        impl=IMPLEMENTATION,
        box_head=ConvBoxHead(),
        evaluators=[CountEvaluator()],
        detector=DETECTOR,
        out=tmp_path_factory.mktemp("extension") / "run",
        **SMALL,
    )


def test_all_four_train(run, capsys):
    assert CALLS
    assert [row["loss"] for row in run.history if row["event"] == "train"]
    assert run.metrics["detections_per_image"] >= 0
    assert set(run.metrics) > {"bbox", "segm", "detections_per_image", "step", "split", "images"}
    counts = json.loads((run.predictions / "counts.json").read_text())
    assert len(counts) == 3
    assert run.metrics["detections_per_image"] == pytest.approx(np.mean(counts))


def test_the_ground_truth_of_an_object_dataset_is_its_objects(run):
    truth = Squares(3).ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2, 3]
    assert truth["categories"] == [{"id": 7, "name": "square"}]
    assert [annotation["bbox"] for annotation in truth["annotations"]] == [
        [5.0 + 3 * index, 5.0 + 3 * index, 20.0, 20.0] for index in range(3)
    ]
    assert {annotation["area"] for annotation in truth["annotations"]} == {400.0}


def test_loading_asks_for_the_objects_again(run):
    with pytest.raises(UserError, match="impl: the model was trained with a custom object; pass"):
        botvision.load(run, box_head=ConvBoxHead())
    with pytest.raises(UserError, match="box_head: the model was trained with a custom object"):
        botvision.load(run, impl=IMPLEMENTATION)
    head = ConvBoxHead()
    before = head.conv.weight.detach().clone()
    CALLS.clear()
    model = botvision.load(run, impl=IMPLEMENTATION, box_head=head, device="cpu", precision="32")
    assert not torch.equal(head.conv.weight, before)
    (prediction,) = model.predict(Squares(1).image(0), score_threshold=0)
    assert CALLS and len(prediction) > 0
    assert set(prediction.names) == {"square"}
    assert {result["category_id"] for result in prediction.to_coco()} == {7}


def test_evaluation_takes_one_split_and_the_objects(run, tmp_path):
    metrics = botvision.evaluate(
        run,
        Squares(3),
        impl=IMPLEMENTATION,
        box_head=ConvBoxHead(),
        evaluators=[CountEvaluator()],
        score_threshold=0.05,
        device="cpu",
        precision="32",
        out=tmp_path,
    )
    assert metrics["bbox"] == run.metrics["bbox"]
    assert metrics["detections_per_image"] == run.metrics["detections_per_image"]
    assert (tmp_path / "predictions" / "counts.json").is_file()


def test_a_run_with_objects_is_resumed_with_them(run):
    with pytest.raises(UserError, match="trained with"):
        botvision.train({"train": Squares(5)}, out=run.path, resume=True, max_steps=3)
    again = botvision.train(
        {"train": Squares(5), "val": Squares(3)},
        impl=IMPLEMENTATION,
        box_head=ConvBoxHead(),
        out=run.path,
        resume=True,
        max_steps=3,
    )
    assert [row["step"] for row in again.history if row["event"] == "train"] == [1, 2, 3]


class TwoColors:
    """Red and blue images for classification."""

    classes = ("red", "blue")

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 2
        return Image.new("RGB", (40, 40), ("#d02020", "#2020d0")[label]), label

    def summary(self):
        return f"{self.count} pictures of two colors"


def test_a_classifier_takes_data_an_implementation_and_an_evaluator(tmp_path):
    class Batches:
        def reset(self):
            self.images = 0

        def update(self, predictions, batch):
            images, labels = batch
            assert predictions.shape == (len(labels), 2) and images.dtype == torch.uint8
            self.images += len(images)

        def compute(self):
            return {"seen": self.images}

        def report(self, folder, console):
            pass

    CALLS.clear()
    run = botvision.train(
        {"train": TwoColors(6), "val": TwoColors(4)},
        model="botnet50_s1",
        impl=IMPLEMENTATION,
        evaluators=[Batches()],
        out=tmp_path / "run",
        **SMALL,
    )
    assert CALLS and run.metrics["seen"] == 4
    model = botvision.load(run, impl=IMPLEMENTATION, device="cpu", precision="32")
    (prediction,) = model.predict([TwoColors(1)[0][0]])
    assert {name for name, _ in prediction.top()} == {"red", "blue"}
    with pytest.raises(UserError, match="box_head: applies only to detectors"):
        botvision.train(
            {"train": TwoColors(6)}, box_head=ConvBoxHead(), out=tmp_path / "x", **SMALL
        )
