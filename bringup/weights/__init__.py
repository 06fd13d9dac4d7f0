"""Weights: fetched by the lock, compared with the lock, never half-written."""
