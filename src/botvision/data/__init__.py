"""Data sets: COCO-format folders, the built-in shapes, large-scale jitter, batches."""
