"""A query answered: statement, rows, results."""
