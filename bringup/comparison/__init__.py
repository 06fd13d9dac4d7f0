"""Bundles beside each other: what differs, and which differences are more than noise. Pure."""
