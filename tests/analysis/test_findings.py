"""The paper's statements about Fig. 7, checked against counts."""

import numpy as np

from mnv2_jax.analysis import patterns
from mnv2_jax.analysis.findings import compare


def test_findings_are_computed():
    def state(expansion, others):
        def layer(name, counts):
            histogram = np.bincount(counts, minlength=13)
            return patterns.Layer(name, histogram, histogram)

        layers = [
            layer("stem", others),
            *(layer(f"block_{i}/expand", expansion) for i in range(3)),
            layer("head", others),
        ]
        return patterns.Patterns(layers, [patterns.Block(f"block_{i}", 2, 12) for i in range(3)])

    tight, wide, low = state([6, 6, 5, 7], [6, 6]), state([2, 6, 10], [4, 8]), state([1, 6, 11], [6, 6])
    assert [finding.agrees for finding in compare(tight, wide)] == [True, True, True]
    assert [finding.agrees for finding in compare(wide, tight)] == [False, False, True]
    third = compare(tight, low)[2]
    assert (third.agrees, third.measured["below"]) == (False, [f"block_{i}/expand" for i in range(3)])
