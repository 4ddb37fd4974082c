"""What the database knows of a table: its columns, indexes, statistics and records."""
