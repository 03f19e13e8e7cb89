"""One pass over the images of a split, in several threads."""

import sys
import warnings

from botvision.data.image_folder import ImageFolder
from botvision.data.inspection import inspect_all
from class_files import write_classes


def test_reading_in_threads_leaves_the_filters_of_warnings(tmp_path):
    """Each thread changes them while it opens an image."""
    write_classes(tmp_path, train=200, val=3)
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert len(list(inspect_all(ImageFolder(tmp_path / "train"), workers=8))) == 200
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before
