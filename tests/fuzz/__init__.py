"""Hostile bytes: binary and text input (fuzz_recv.c, fuzz_input.c), pages of an index (pages.py)."""
