"""The half that runs in the container: entry point, health check, log handler.

It imports with the standard library, requests and blake3, which the image's interpreter has; every module here is
loaded by vLLM's own processes or before them.
"""
