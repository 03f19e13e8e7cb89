"""Outputs of a small member of every model family and of a detector, on fixed weights and pixels.

``python tests/golden/outputs.py`` writes ``outputs.json``. The file in the repository was written
by commit 331a5ec; rewrite it only for a change that is meant to change results.
"""

import json
import zlib
from pathlib import Path

import torch

import botvision
from botvision.config import DetectorConfig
from botvision.detection import build_detector

FILE = Path(__file__).with_name("outputs.json")
TINY = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
TWO_BLOCKS = {**TINY, "layers": (1, 1, 2, 2)}
MODELS = {
    "botnet18": TINY,
    "botnet50": TWO_BLOCKS,
    "botnet50_s1": TWO_BLOCKS,
    "botnet_t3": TWO_BLOCKS,
    "botnet50 content only": {**TINY, "position": "none"},
    "botnet50 position only": {**TINY, "content": False},
    "botnet50 absolute": {**TINY, "position": "absolute"},
    "resnet50_bot_c4_c5": TWO_BLOCKS,
    "resnet50_nl_c4": TWO_BLOCKS,
    "resnet50_nl_c4_value": TWO_BLOCKS,
    "senet50": TINY,
}
DETECTOR = DetectorConfig(
    fpn_channels=16,
    anchor_sizes=(8, 16, 32, 64, 128),
    rpn_pre_nms=(100, 100),
    rpn_post_nms=(50, 50),
    roi_samples=32,
    box_head_dim=32,
    mask_convs=1,
    mask_channels=16,
)


def fill(model):
    """Weights that depend on their names and shapes, not on the order in which they are drawn."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(tensor.shape, generator=random)
        if name.endswith("running_var"):
            value = 1 + 0.1 * noise.abs()
        elif tensor.ndim < 2:
            value = (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
        else:
            value = noise * (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(value)
    return model


def pixels(*shape, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


def model_outputs(name):
    """Logits of two images, those of another size, and the norm of every stage's gradient."""
    kwargs = {"num_classes": 5, "image_size": 64, **MODELS[name]}
    model = fill(botvision.create_model(name.split()[0], **kwargs)).eval()
    images, other = (pixels(2, 3, *size, seed=0) / 127.5 - 1 for size in ((64, 64), (48, 80)))
    logits = model(images)
    logits.square().sum().backward()
    return {
        "logits": logits.tolist(),
        "logits at 48x80": model(other).tolist(),
        "gradients": {n: float(p.grad.norm()) for n, p in model.named_parameters()},
    }


def detector_outputs(task):
    """Losses of a training step and what is found in an image."""
    build = {"task": task, "config": DETECTOR, "model_args": TINY}
    detector = fill(build_detector("botnet50", 3, 128, **build))
    image = pixels(3, 96, 128, seed=1)
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 10:40, 20:60] = masks[1, 50:90, 30:70] = 1
    target = {
        "boxes": torch.tensor([[20.0, 10, 60, 40], [30, 50, 70, 90]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
    }
    with torch.no_grad():
        (found,) = detector.eval()([image])
        best = {name: value[:5] for name, value in found.items()}
        if "masks" in best:
            best["masks"] = best["masks"][:, 0, 4::10, 4::10]
        torch.manual_seed(0)
        losses = detector.train()([image], [target])
    return {
        "losses": {name: float(value) for name, value in losses.items()},
        "detections": len(found["boxes"]),
        **{name: value.tolist() for name, value in best.items()},
    }


def outputs():
    models = {name: model_outputs(name) for name in MODELS}
    detectors = {task: detector_outputs(task) for task in ("segmentation", "detection")}
    return {**models, **detectors}


if __name__ == "__main__":
    FILE.write_text(json.dumps(outputs()) + "\n", encoding="utf-8")
