"""bq beside its peers, in one command: see __main__.py."""
