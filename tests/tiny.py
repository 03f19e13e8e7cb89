"""Settings of a detector so small that a step takes milliseconds."""

TINY_SETTINGS = [
    *("--model-args", "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32]}"),
    *("--image-size", "64", "--batch-size", "3", "--base-lr", "0.01", "--base-batch-size", "3"),
    *("--detector.fpn-channels", "16", "--detector.anchor-sizes", "[8, 16, 32, 64, 128]"),
    *("--detector.rpn-pre-nms", "[60, 60]", "--detector.rpn-post-nms", "[30, 30]"),
    *("--detector.roi-samples", "16", "--detector.box-head-dim", "32"),
    *("--detector.mask-convs", "1", "--detector.mask-channels", "16"),
    *("--device", "cpu", "--precision", "32", "--workers", "0", "--warmup-steps", "2"),
]
