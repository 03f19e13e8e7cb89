"""Data: one file per format, transforms, samplers, datasets, the built-in shapes."""
