"""Doors to the outside: each module is the only importer of its library or system surface."""
