"""What a user does to a table."""
