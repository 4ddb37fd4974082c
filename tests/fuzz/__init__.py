"""Hostile bytes: input of the types (fuzz_recv.c, fuzz_input.c), pages of an index (pages.py)."""
