"""Claims as experiments: arms and seeds, statistics, figures, report."""
