"""Where requests, rewrites and rewards come from: the embedded world, files, functions."""
