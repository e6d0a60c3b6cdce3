"""A finished run in use: rewrite, chat and serve."""
