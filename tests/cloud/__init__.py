"""Tests that spend money at RunPod: never collected unless this directory is named, and skipped without consent."""
