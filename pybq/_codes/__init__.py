"""Vectors and their codes: no database here."""
