"""Mask R-CNN and Faster R-CNN on any of the backbones."""

from botvision.detection.detector import Detection, Detector, build_detector
from botvision.detection.inference import detect
from botvision.detection.tta import TTA

__all__ = ["TTA", "Detection", "Detector", "build_detector", "detect"]
