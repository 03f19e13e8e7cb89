"""Mask R-CNN and Faster R-CNN on any of the backbones."""

from botvision.detection.detector import build_detector

__all__ = ["build_detector"]
