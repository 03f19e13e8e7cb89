"""The masks of an annotation file: checked, and kept in a few arrays.

Worker processes share arrays, where millions of small Python objects would be copied into each of
them as their reference counts change.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from botvision.data.json_values import Malformed, field, number, shown, whole
from botvision.data.rle import run_lengths
from botvision.data.transforms import Segmentation

# What an object's mask is. Only SOUND ones are trained on and evaluated.
SOUND, ABSENT, EMPTY, FAR = range(4)
# Coordinates further from the image than this many times its longer side are FAR.
REACH = 10
# Points that are checked at once.
_BLOCK = 1_000_000


@dataclass(frozen=True)
class Segmentations:
    """The masks of n objects, polygons or compressed RLE."""

    points: NDArray[np.float64]
    """x, y, x, y, ... of all polygons."""
    ends: NDArray[np.int64]
    """(polygons + 1,): polygon i has the points[ends[i] : ends[i + 1]]."""
    parts: NDArray[np.int64]
    """(n, 2): object i has the polygons parts[i, 0] up to, not including, parts[i, 1]."""
    counts: bytes
    """The counts of all RLEs."""
    runs: NDArray[np.int64]
    """(n, 2): object i has the counts[runs[i, 0] : runs[i, 1]]."""

    def __getitem__(self, rows: NDArray[Any]) -> Segmentations:
        """The masks of some of the objects."""
        return Segmentations(self.points, self.ends, self.parts[rows], self.counts, self.runs[rows])

    def mask(self, row: int, height: int, width: int) -> Segmentation | None:
        """The mask of an object.

        Args:
            row: the object.
            height: height of its image in pixels.
            width: width of its image in pixels.

        Returns:
            Polygons or compressed RLE; None if the object has no mask.
        """
        start, stop = self.runs[row]
        if start < stop:
            return {"size": [height, width], "counts": self.counts[start:stop].decode("ascii")}
        first, last = self.parts[row]
        ends = self.ends[first : last + 1]
        return [self.points[a:b].tolist() for a, b in pairwise(ends)] or None


class SegmentationReader:
    """Collects the masks of the objects of a file, one after the other."""

    def __init__(self) -> None:
        self._points, self._ends = array("d"), array("q", [0])
        self._parts, self._runs = array("q", [0]), array("q", [0])
        self._counts = bytearray()
        self._states = bytearray()

    def add(self, mask: Any, height: int, width: int) -> None:
        """Add the mask of the next object.

        Args:
            mask: ``segmentation`` of an annotation: polygons, each as x, y, x, y, ... or as
                [x, y] pairs; one such polygon; an RLE, compressed or not; or None, [] or {}.
            height: height of the image in pixels.
            width: width of the image in pixels.

        Raises:
            Malformed: the mask is none of these, or an RLE that does not fit the image. Nothing is
                added.
        """
        points, ends, counts = len(self._points), len(self._ends), len(self._counts)
        state = SOUND
        try:
            if type(mask) is list:
                state = self._add_polygons(mask)
            elif type(mask) is dict and mask:
                state = self._add_rle(mask, height, width)
            elif mask is None or mask == {}:
                state = ABSENT
            else:
                raise Malformed(f"'segmentation' is {shown(mask)}, not a list of polygons or RLE")
        except Malformed:
            del self._points[points:], self._ends[ends:], self._counts[counts:]
            raise
        self._parts.append(len(self._ends) - 1)
        self._runs.append(len(self._counts))
        self._states.append(state)

    def _add_polygons(self, mask: list[Any]) -> int:
        if not mask:
            return ABSENT
        first = len(self._ends)
        if type(mask[0]) is not list:
            mask = [mask]
        elif _are_pairs(mask):
            mask = [list(chain(*mask))]
        for part in mask:
            pairs = type(part) is list and part and type(part[0]) is list and _are_pairs(part)
            self._add_polygon(list(chain(*part)) if pairs else part)
        if len(self._ends) > first:
            return SOUND
        return EMPTY if any(part != [] for part in mask) else ABSENT

    def _add_polygon(self, polygon: Any) -> None:
        if type(polygon) is not list:
            raise Malformed(f"'segmentation' contains {shown(polygon)} in place of a polygon")
        start = len(self._points)
        try:
            self._points.extend(polygon)
            if bool in map(type, polygon):
                raise TypeError
        except (TypeError, OverflowError):
            del self._points[start:]
            self._points.extend([number(v, "a coordinate of 'segmentation'") for v in polygon])
        # Fewer than three points enclose nothing; the other polygons of the object remain.
        if len(polygon) < 6 or len(polygon) % 2:
            del self._points[start:]
        else:
            self._ends.append(len(self._points))

    def _add_rle(self, mask: dict[str, Any], height: int, width: int) -> int:
        size, counts = field(mask, "size"), field(mask, "counts")
        if type(size) is not list or [whole(v, "'size'") for v in size] != [height, width]:
            wrong = size if type(size) is list and len(size) == 2 else shown(size)
            raise Malformed(f"the RLE's size is {wrong}, the image's [{height}, {width}]")
        if type(counts) is list:
            if {*map(type, counts)} - {int}:
                counts = [whole(v, "a number of the RLE's 'counts'") for v in counts]
            runs = np.array([min(max(v, -1), height * width + 1) for v in counts], np.int64)
        elif type(counts) is str:
            try:
                runs = run_lengths(counts)
            except ValueError:
                raise Malformed("the RLE's counts are not COCO's compressed form") from None
        else:
            raise Malformed(f"the RLE's 'counts' is {shown(counts)}, not a list or text")
        if not runs.size:
            return EMPTY
        total = height * width
        if runs.min() < 0 or runs.max() > total or runs.sum() != total:
            raise Malformed("the RLE's counts do not add up to the size of the image")
        if not runs[1::2].any():
            return EMPTY
        if type(counts) is list:
            rle = {"size": [height, width], "counts": runs.tolist()}
            counts = coco_mask.frPyObjects(rle, height, width)["counts"]
        self._counts += counts.encode("ascii") if isinstance(counts, str) else counts
        return SOUND

    def finish(self, sizes: NDArray[np.int64]) -> tuple[Segmentations, NDArray[np.uint8]]:
        """Check the polygons.

        Args:
            sizes: (n, 2), width and height of each object's image.

        Returns:
            The masks of the n objects, and what each of them is, such as ``SOUND``, (n,). The
            object of a mask that is not sound has none.
        """
        bounds, runs = (np.frombuffer(values, np.int64) for values in (self._parts, self._runs))
        parts, runs = (np.stack((v[:-1], v[1:]), axis=1) for v in (bounds, runs))
        points, ends = np.frombuffer(self._points), np.frombuffer(self._ends, np.int64)
        states = np.frombuffer(self._states, np.uint8).copy()
        owners = np.repeat(np.arange(len(parts)), parts[:, 1] - parts[:, 0])
        far, doubtful = _outliers(points, ends, sizes[owners])
        states[owners[far]] = FAR
        with_area = np.zeros(len(parts), np.bool_)
        with_area[owners[~doubtful]] = True
        for part in np.flatnonzero(doubtful):
            owner = owners[part]
            if not with_area[owner] and states[owner] == SOUND:
                width, height = sizes[owner].tolist()
                polygon = points[ends[part] : ends[part + 1]].tolist()
                with_area[owner] = coco_mask.area(
                    coco_mask.frPyObjects([polygon], height, width)
                ).any()
        drawn = parts[:, 1] > parts[:, 0]
        states[drawn & (states == SOUND) & ~with_area] = EMPTY
        parts[states != SOUND] = 0
        return Segmentations(points, ends, parts, bytes(self._counts), runs), states


def _are_pairs(points: list[Any]) -> bool:
    """Whether each of the points is a list [x, y]."""
    return (
        type(points[0]) is list
        and len(points[0]) == 2
        and all(type(point) is list and len(point) == 2 for point in points)
    )


def _outliers(
    points: NDArray[np.float64], ends: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which polygons are far outside of their images, and which may have no pixel.

    Args:
        points: x, y, x, y, ... of all polygons.
        ends: (polygons + 1,), where each polygon ends in ``points``.
        sizes: (polygons, 2), width and height of the image of each polygon.

    Returns:
        Two arrays, (polygons,). A polygon that leaves the image, or whose area is small compared
        with its perimeter, may have no pixel.
    """
    far = np.zeros(len(sizes), np.bool_)
    doubtful = np.zeros(len(sizes), np.bool_)
    for block in _blocks(ends):
        own = ends[block.start : block.stop + 1]
        xy = points[own[0] : own[-1]].reshape(-1, 2)
        starts, stops = (own[:-1] - own[0]) // 2, (own[1:] - own[0]) // 2
        following = np.empty_like(xy)
        following[:-1] = xy[1:]
        following[stops - 1] = xy[starts]
        with np.errstate(all="ignore"):  # of coordinates that are not finite
            low = np.minimum.reduceat(xy, starts)
            high = np.maximum.reduceat(xy, starts)
            cross = xy[:, 0] * following[:, 1] - xy[:, 1] * following[:, 0]
            area = np.abs(np.add.reduceat(cross, starts)) / 2
            perimeter = np.add.reduceat(np.hypot(*(following - xy).T), starts)
        size = sizes[block]
        reach = REACH * size.max(axis=1, keepdims=True)
        far[block] = ~((low >= -reach) & (high <= size + reach)).all(axis=1)
        inside = ((low >= 0) & (high <= size)).all(axis=1)
        # A convex region of more area than half its perimeter contains a pixel's center.
        doubtful[block] = ~(inside & (area > perimeter))
    return far, doubtful


def _blocks(ends: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of the polygons that have about ``_BLOCK`` numbers each."""
    start = 0
    while start < len(ends) - 1:
        stop = int(np.searchsorted(ends, ends[start] + _BLOCK))
        stop = min(max(stop, start + 1), len(ends) - 1)
        yield slice(start, stop)
        start = stop
