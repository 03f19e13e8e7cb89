"""Predictions for one image. They require only NumPy, not torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from botvision.data.categories import Categories
from botvision.data.images import open_image
from botvision.data.pasting import encode_mask, mask_polygons, paste_mask
from botvision.data.pixels import Pixels
from botvision.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Base class of the predictions of both tasks.

    Args:
        file: image file. None for an image that was passed as pixels.
        size: width and height in pixels.
        pixels: the image, if it was not read from a file.
        reading: how the file is read.
    """

    file: Path | None
    size: tuple[int, int]
    pixels: Image.Image | None = None
    reading: Pixels = field(default_factory=Pixels)

    @property
    def image(self) -> Image.Image:
        """The RGB image. An image from a file is read again."""
        if self.pixels is not None:
            return self.pixels
        assert self.file is not None
        return open_image(self.file, pixels=self.reading)


@dataclass(frozen=True, kw_only=True)
class DetectionPrediction(Prediction):
    """The n objects detected in one image, sorted by descending score.

    Args:
        boxes: (n, 4) float64, xyxy in pixels of the image.
        scores: (n,) float32.
        class_ids: (n,) int64, zero-based indices into the classes of the model.
        categories: the model's classes.
        box_masks: (n, 28, 28) float32, mask probabilities inside the boxes. None for a model
            without masks.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    categories: Categories
    box_masks: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.categories.names[k] for k in self.class_ids]

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """Masks in the image, (n, height, width). None for a model without masks.

        They are computed at each access.
        """
        if self.box_masks is None:
            return None
        masks = np.zeros((len(self), *self.size[::-1]), np.bool_)
        for index, whole in enumerate(masks):
            self._paste(index, whole)
        return masks

    def _paste(self, index: int, whole: NDArray[np.bool_]) -> NDArray[np.bool_]:
        assert self.box_masks is not None
        box = self.boxes[index]
        top, left, part = paste_mask(self.box_masks[index], box, self.size[::-1])
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part > 0.5
        return whole

    def polygons(self, index: int) -> list[list[float]]:
        """Return the outer contours of an object's mask, see ``mask_polygons``."""
        if self.box_masks is None:
            raise UserError("the model has no masks; train it with the task segmentation")
        return mask_polygons(self.box_masks[index], self.boxes[index], self.size[::-1])

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Convert to COCO's result format, with category ids of the training data and RLE masks."""
        results = []
        for index, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            result: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self.categories.ids[self.class_ids[index]],
                "bbox": [left, top, right - left, bottom - top],
                "score": float(self.scores[index]),
            }
            if self.box_masks is not None:
                box = self.boxes[index]
                mask = encode_mask(self.box_masks[index], box, self.size[::-1])
                result["segmentation"] = mask
            results.append(result)
        return results

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Detections``, with class names in ``data["class_name"]``.

        Returns:
            The n objects: ``xyxy`` (n, 4) float32 in pixels of the image, ``mask``
            (n, height, width) bool or None, ``confidence`` (n,) float32 and ``class_id`` (n,).

        Raises:
            UserError: supervision is not installed.
        """
        return _supervision().Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=self.scores,
            class_id=self.class_ids.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self) -> Image.Image:
        """Draw boxes, class names, scores and masks over the image."""
        from botvision.visualize.overlays import draw_instances  # Loads matplotlib.

        masks = None
        if self.box_masks is not None:
            shape = self.size[::-1]
            masks = (self._paste(i, np.zeros(shape, np.bool_)) for i in range(len(self)))
        return draw_instances(self.image, self.boxes, self.names, self.scores, masks)


@dataclass(frozen=True, kw_only=True)
class ClassificationPrediction(Prediction):
    """The class probabilities of one image.

    Args:
        probabilities: (classes,) float32, in the order of ``classes``.
        classes: class names.
    """

    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the ``count`` most probable classes and their probabilities, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[k], float(self.probabilities[k])) for k in best]

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Classifications``.

        Returns:
            All classes in the model's order: ``class_id`` (classes,) and ``confidence`` (classes,)
            float32, the probabilities.

        Raises:
            UserError: supervision is not installed.
        """
        return _supervision().Classifications(
            class_id=np.arange(len(self.classes)), confidence=self.probabilities
        )

    def draw(self) -> Image.Image:
        """Draw the image above a bar chart of the five most probable classes."""
        from botvision.visualize.classes import prediction_sheet  # Loads matplotlib.

        return prediction_sheet([self.image], [self.top()])


def _supervision() -> Any:
    try:
        import supervision
    except ImportError:
        raise UserError("supervision is not installed; run `pip install supervision`") from None
    return supervision
