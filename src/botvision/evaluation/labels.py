"""Mapping of a model's labels to the category ids of an annotation file, by class name."""

from __future__ import annotations

from dataclasses import dataclass

from botvision.data.categories import Categories
from botvision.data.detection import DetectionData
from botvision.errors import UserError
from botvision.text import printable


@dataclass(frozen=True)
class LabelMap:
    """Which category id each label of the model has in a data set, and what has no partner."""

    category_of: dict[int, int]
    only_model: list[str]
    only_data: list[str]

    @classmethod
    def between(cls, model: Categories, data: DetectionData) -> LabelMap:
        """Match by name: ids differ between files, names are what people mean.

        Args:
            model: the model's categories.
            data: the split.

        Returns:
            The category id of each common label, and the names of the classes that only the model
            or only the data has.

        Raises:
            UserError: not one class is common.
        """
        ids = dict(zip(data.categories.names, data.categories.ids, strict=True))
        category_of = {
            model.label_of[category]: ids[name]
            for category, name in zip(model.ids, model.names, strict=True)
            if name in ids
        }
        if not category_of:
            raise UserError(
                f"{data.name}: has none of the model's classes "
                f"({', '.join(model.names[:5])}...); evaluate on data with the same class names"
            )
        return cls(
            category_of,
            only_model=[name for name in model.names if name not in ids],
            only_data=[name for name in ids if name not in model.names],
        )

    def __str__(self) -> str:
        """Say what is not common; empty if all is."""
        lines = []
        if self.only_model:
            names = ", ".join(map(printable, self.only_model))
            lines.append(f"classes of the model that the data lacks, left out: {names}")
        if self.only_data:
            names = ", ".join(map(printable, self.only_data))
            lines.append(f"classes of the data that the model lacks, counted as missed: {names}")
        return "\n".join(lines)
