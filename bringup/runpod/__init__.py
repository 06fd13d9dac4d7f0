"""Pods of RunPod: what is asked for, what is owned, and how one comes, is proven and goes."""
