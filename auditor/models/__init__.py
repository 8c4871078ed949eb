"""Model files, one module a format: bytes in, a callable network out, nothing executed."""
