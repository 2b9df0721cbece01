"""What the paper reasons about, computed: what an activation loses of a low-dimensional set (Sec. 3.2, Fig. 1, Appendix A)."""
