"""Checks of the paper's theory: what an activation loses of a low-dimensional set (Sec. 3.2, Fig. 1, Appendix A)."""
