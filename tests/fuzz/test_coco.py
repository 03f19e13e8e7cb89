"""Annotation files with changed values, types, nesting and bytes."""

from hypothesis import event, given
from hypothesis import strategies as st

from fuzz import coco


@given(coco.annotation_files(), st.sampled_from(coco.TASKS))
def test_a_changed_annotation_file_is_read_or_is_one_line(data, task):
    event("read" if coco.read(data, task) else "one line")
