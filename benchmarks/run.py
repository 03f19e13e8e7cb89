"""Run all benchmarks of this project.

    python benchmarks/run.py           # on the GPU if torch finds one, else on the CPU
    python benchmarks/run.py --plan    # only print what would be measured

Run it on an otherwise idle machine. It writes the results to benchmarks/results/, with the name of
the machine and the versions. benchmarks/README.md explains the results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# The command sets this variable too. It must be set before torch loads its profiler.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch

from botvision.bench.attention import bench_attention
from botvision.bench.config import AttentionBenchConfig, ModelBenchConfig
from botvision.bench.models import bench_models

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZES = ["7", "14", "20", "24", "32", "40", "50x84", "64", "80"]


def gpu_tests() -> None:
    """Run the tests of the compiled kernels, which require a GPU."""
    tests = [sys.executable, "-m", "pytest", "-q", "tests/attention"]
    subprocess.run(tests, cwd=ROOT, check=True)


def attention(device: str) -> None:
    """Measure one attention layer with all implementations."""
    config = AttentionBenchConfig(
        sizes=SIZES,
        seconds=4.0,
        device=device,
        json=RESULTS / f"attention-{device}.json",
        plot=RESULTS / f"attention-{device}.png",
    )
    bench_attention(config)


def models(device: str, image_size: int, batch_size: int) -> None:
    """Compare botnet50 with resnet50. The paper reports a small overhead."""
    config = ModelBenchConfig(
        ["resnet50", "botnet50"],
        image_size=image_size,
        batch_size=batch_size,
        precision=["32", "bf16"],
        mode=["forward", "train"] if device == "cuda" else ["forward"],
        seconds=30.0,
        device=device,
        json=RESULTS / f"resnet50-botnet50-{image_size}-{device}.json",
    )
    bench_models(config)


def efficientnet(device: str, batch_size: int) -> None:
    """Compare botnet_t7 with EfficientNet-B7, each at its own image size.

    The paper reports a speedup of 1.64x at equal ImageNet accuracy.
    """
    config = ModelBenchConfig(
        ["tf_efficientnet_b7@600", "botnet_t7@384"],
        batch_size=batch_size,
        precision=["32", "bf16"],
        mode=["forward", "train"] if device == "cuda" else ["forward"],
        seconds=40.0,
        device=device,
        json=RESULTS / f"efficientnet-b7-botnet-t7-{device}.json",
    )
    bench_models(config)


def evaluation() -> None:
    """Compare the speed of the COCO evaluation with pycocotools. The metrics must agree."""
    script = [sys.executable, "benchmarks/evaluation.py"]
    subprocess.run([*script, "--json", RESULTS / "evaluation-cpu.json"], cwd=ROOT, check=True)


def detection(device: str) -> None:
    """Measure training steps of Mask R-CNN, compared with torchvision's detector."""
    script = [sys.executable, "benchmarks/detection.py", "--device", device]
    subprocess.run([*script, "--json", RESULTS / f"detection-{device}.json"], cwd=ROOT, check=True)


def plan(device: str) -> dict[str, Callable[[], None]]:
    """Return the measurements on a device, as a dict from description to function."""
    few, many = (1, 8) if device == "cpu" else (8, 128)
    steps: dict[str, Callable[[], None]] = {
        f"one attention layer, {len(SIZES)} map sizes, all implementations": partial(
            attention, device
        ),
        f"botnet50 and resnet50 at 1024 px, batch size {few}": partial(models, device, 1024, few),
        f"botnet50 and resnet50 at 224 px, batch size {many}": partial(models, device, 224, many),
        f"botnet_t7 at 384 px and EfficientNet-B7 at 600 px, batch size {few}": partial(
            efficientnet, device, few
        ),
        "training steps of Mask R-CNN at 1024 px, compared with torchvision's detector": partial(
            detection, device
        ),
    }
    if device == "cuda":
        return {"tests of the kernels on the GPU": gpu_tests, **steps}
    return {**steps, "COCO evaluation of 500 images, compared with pycocotools": evaluation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="only print what would be measured")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda if torch finds a GPU, else cpu"
    )
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not arguments.plan and not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine; --plan prints what would be measured")
    for step, run in plan(device).items():
        print(f"{device}: {step}", flush=True)
        if not arguments.plan:
            run()


if __name__ == "__main__":
    main()
