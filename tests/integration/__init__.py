"""Tests on the real engine with the real CPU image; they connect and spawn."""
