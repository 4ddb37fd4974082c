"""Filters as other libraries write them -> conditions of SQL."""
