"""Client of VectorDBBench: ../install.py puts it there."""
