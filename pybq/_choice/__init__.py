"""Original axes or rotation: what is kept of a table's vectors, and what follows from it."""
