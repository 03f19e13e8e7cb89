from hypothesis import HealthCheck, given, settings

from fuzz import coco

SEEN = {True: 0, False: 0}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(coco.annotation_files(), coco.st.sampled_from(coco.TASKS))
def test_a_changed_annotation_file_is_read_or_is_one_line(data, task):
    SEEN[coco.read(data, task)] += 1


def test_some_files_are_read_and_some_are_not():
    if not any(SEEN.values()):
        test_a_changed_annotation_file_is_read_or_is_one_line()
    assert min(SEEN.values()) > 10
