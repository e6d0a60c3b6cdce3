"""One run: configuration, run folder, stages, evaluation, tables, plots and report."""
