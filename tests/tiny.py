"""Settings of a detector so small that a step takes milliseconds."""

import botvision

TINY_SETTINGS = [
    *("--model-args", "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32]}"),
    *("--image-size", "64", "--batch-size", "3", "--base-lr", "0.01", "--base-batch-size", "3"),
    *("--detector.fpn-channels", "16", "--detector.anchor-sizes", "[8, 16, 32, 64, 128]"),
    *("--detector.rpn-pre-nms", "[60, 60]", "--detector.rpn-post-nms", "[30, 30]"),
    *("--detector.roi-samples", "16", "--detector.box-head-dim", "32"),
    *("--detector.mask-convs", "1", "--detector.mask-channels", "16"),
    *("--device", "cpu", "--precision", "32", "--workers", "0", "--warmup-steps", "2"),
]


def python_train(data, out, **more):
    """Train from Python for 4 steps, with an evaluation after every second one."""
    settings = {
        "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]},
        "image_size": 64,
        "batch_size": 2,
        "lr": 0.01,
        "max_steps": 4,
        "eval_steps": 2,
        "device": "cpu",
        "precision": "32",
        "detector": {"fpn_channels": 16, "box_head_dim": 32, "mask_convs": 1, "mask_channels": 16},
    }
    # Not before, since it imports Triton, see attention/conftest.py.
    from botvision.data.coco import find_splits, load_split

    splits = {name: load_split(split) for name, split in find_splits(data).items()}
    return botvision.train(splits, out=str(out), **settings | more)
