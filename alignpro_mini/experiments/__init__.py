"""Many runs: each module is a command, `python -m alignpro_mini.experiments.NAME --help`."""
