"""Benchmark layers, peers and ahead-of-time cases that more than one spec lists."""
