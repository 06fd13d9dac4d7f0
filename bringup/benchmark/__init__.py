"""Benchmarks of a server: its throughput by vLLM's own client (`serve`), and the time its start takes (`start`)."""
