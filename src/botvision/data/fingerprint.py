"""A fingerprint of a split, by which a resumed run notices that its data have changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from botvision.data.classification import ClassificationData
from botvision.data.coco import CocoData
from botvision.data.detection import DetectionData


def fingerprint(data: DetectionData | ClassificationData) -> dict[str, Any]:
    """Summarize a split without reading its images.

    Args:
        data: the split. Detection data is summarized by the names of its images and by its boxes
            and their categories; classification data by its ``labels`` and the names of its
            ``files``, if it has these attributes.

    Returns:
        ``images``, their number, and ``hash``, a hexadecimal number.
    """
    digest = hashlib.sha256()
    if isinstance(data, CocoData):  # COCO has 860,000 objects
        content = data.annotations
        digest.update("\0".join(content.file_names).encode(errors="replace"))
        for array in (content.first, content.boxes, content.category_ids):
            digest.update(np.ascontiguousarray(array).tobytes())
    elif isinstance(data, DetectionData):
        for index in range(len(data)):
            boxes, category_ids, _ = data.objects(index)
            digest.update(f"{data.image_name(index)}\0{len(boxes)}\0".encode(errors="replace"))
            digest.update(np.asarray(boxes, np.float64).tobytes())
            digest.update(np.asarray(category_ids, np.int64).tobytes())
    else:
        labels, files = getattr(data, "labels", ()), getattr(data, "files", ())
        digest.update(np.asarray(labels, np.int64).tobytes())
        for file in files:
            digest.update(f"{Path(file).name}\0".encode(errors="replace"))
    return {"images": len(data), "hash": digest.hexdigest()[:16]}
