"""The paper's results for its classification models, with the evidence for each row.

The paper's appendix, which describes the scaled models, was not available: their numbers come from
authors who quote it. ``None`` is a number that no source reports.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of the paper's ImageNet tables.

    Args:
        image_size: side of the square input, pixels.
        parameters: millions.
        multiply_adds: billions per image.
        top1: top-1 accuracy on ImageNet's validation set, percent.
        top5: top-5 accuracy, percent.
        evidence: source of the numbers.
        note: other sources that disagree.
    """

    image_size: int
    parameters: float
    multiply_adds: float | None
    top1: float | None
    top5: float | None
    evidence: str
    note: str = ""


_COUNTER = "the authors' multiply-add counter"
_QUOTED = "quoted by the NFNet paper (arXiv 2102.06171), Table 3"

PUBLISHED = {
    "botnet50": Published(
        224, 20.8, 3.79, 78.3, 94.2, "Tables 9 and 10", "the authors' own counter gives 4.02 B"
    ),
    "botnet50_s1": Published(
        224, 20.8, 4.27, 79.1, 94.4, "Tables 9 and 10", "the authors' own counter gives 5.42 B"
    ),
    "botnet_t3": Published(
        224, 33.5, 7.3, 81.7, 95.8, f"{_COUNTER}; accuracy quoted by later papers"
    ),
    "botnet_t4": Published(224, 54.7, 10.9, 82.8, 96.3, f"{_COUNTER}; {_QUOTED}"),
    "botnet_t5": Published(256, 75.1, 19.3, 83.5, 96.5, f"{_COUNTER}; {_QUOTED}"),
    "botnet_t6": Published(320, 53.9, 23.3, 84.0, 96.7, f"{_COUNTER}; {_QUOTED}"),
    "botnet_t7_320": Published(
        320, 75.1, None, 84.2, None, "version 1 of the paper", "its multiply-adds are not printed"
    ),
    "botnet_t7": Published(384, 75.1, 45.8, 84.7, 97.0, f"section 4.8; {_COUNTER}; {_QUOTED}"),
    "senet50": Published(224, 28.0, None, 79.4, 94.6, _QUOTED),
    "senet101": Published(
        224, 49.2, 7.8, 81.4, 95.7, "quoted in notes on BossNAS; counted by this project's sources"
    ),
    "senet152": Published(288, 66.6, 19.04, 83.1, 96.4, f"{_COUNTER}; {_QUOTED}"),
    "senet350": Published(
        320,
        115.2,
        52.9,
        83.8,
        96.6,
        f"{_COUNTER}; {_QUOTED}",
        "the text says 384 px, where the counter gives 76.2 B",
    ),
}
