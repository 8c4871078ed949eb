"""Look into a model file without running it: what it is, what it holds, what it would do."""
