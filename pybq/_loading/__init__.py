"""Vectors into a table: source, batches, codes, binary COPY."""
