"""The command `pybq`."""
