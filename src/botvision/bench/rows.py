"""The rows that the benchmarks return: one row per measured layer, model or pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from botvision.bench.measure import Measurement
from botvision.config import Dtype, Mode

# Subjects of `AttentionRow` other than implementations.
TIMM = "timm"
NO_POSITIONS = "no positions"
CONVOLUTION = "3x3 convolution"


@dataclass(frozen=True, kw_only=True)
class AttentionRow(Measurement):
    """One layer on one map.

    Args:
        mode: ``"forward"`` or ``"train"``.
        precision: ``"32"``, ``"bf16"`` or ``"16"``.
        height: Height of the map in cells.
        width: Width of the map in cells.
        batch_size: Images per run.
        subject: Name of an implementation, or ``TIMM``, ``NO_POSITIONS`` or ``CONVOLUTION``.
        auto: Whether ``impl="auto"`` chooses this implementation here.
        relative_error: Norm of the difference from the float64 result, divided by the norm of that
            result. In training, the maximum over the gradients of the input and all weights.
        ratio: Median time of timm's layer divided by this one's.
    """

    mode: Mode
    precision: Dtype
    height: int
    width: int
    batch_size: int
    subject: str
    auto: bool
    relative_error: float | None
    ratio: float | None

    @property
    def map(self) -> str:
        """Size of the map, such as ``"50x84"``."""
        return f"{self.height}x{self.width}"

    @property
    def label(self) -> str:
        """Map and subject."""
        return f"{self.map} {self.subject}"


@dataclass(frozen=True, kw_only=True)
class ModelRow(Measurement):
    """One model.

    Args:
        mode: ``"forward"`` or ``"train"``.
        precision: ``"32"``, ``"bf16"`` or ``"16"``.
        model: Name of the model.
        image_size: Side of the square images in pixels.
        batch_size: Images per run.
        parameters: Number of parameters.
        multiply_adds: Multiply-adds per image in inference, of convolutions and matrix products.
        images_per_second: Throughput at the median time.
        ratio: Median time divided by that of the first model.
    """

    mode: Mode
    precision: Dtype
    model: str
    image_size: int
    batch_size: int
    parameters: int
    multiply_adds: int
    images_per_second: float | None
    ratio: float | None

    @property
    def label(self) -> str:
        """Name of the model."""
        return self.model


@dataclass(frozen=True)
class DataRow:
    """One data pipeline.

    Args:
        pipeline: What is done to each image.
        images_per_second: Median throughput of one process on one core.
        spread: Interquartile range of the throughput.
        ratio: Throughput divided by that of the first pipeline.
    """

    pipeline: str
    images_per_second: float
    spread: float
    ratio: float
