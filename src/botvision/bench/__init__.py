"""Benchmarks: attention layers, whole models and data pipelines.

Each has an options class in ``botvision.bench.config`` and one function that validates them,
measures and reports: ``attention.bench_attention``, ``models.bench_models``, ``data.bench_data``.
"""
