"""The core's functions, sooner: the same signatures and results, tested by the same test files."""
