"""Time and memory, measured: attention layers side by side, and whole models."""
