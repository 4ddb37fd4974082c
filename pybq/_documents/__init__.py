"""Rows of a table as documents, for the frameworks that know nothing else."""
