"""Ablation studies of the paper's claims: arms and seeds, statistics, figures, report."""
