"""Evaluation: the interface of evaluators, COCO's metrics, accuracy and calibration."""
