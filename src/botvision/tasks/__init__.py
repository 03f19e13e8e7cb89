"""Train, evaluate and predict: the Python API, for detection and for classification."""
