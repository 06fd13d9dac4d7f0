"""bringup: from a bare GPU host to a proven vLLM endpoint."""

__version__ = "0.1.0"
