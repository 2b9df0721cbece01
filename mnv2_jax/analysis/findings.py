"""The paper's statements about Fig. 7 (Appendix A), checked against counts before and after training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mnv2_jax.analysis.patterns import Patterns, Spread

# How the paper's wording is made precise, in fractions of a layer's channels.
HALF = 0.1
"""About half: the mean over layers is at most this far from 1/2."""
TIGHT = 0.1
"""A tight spread: the standard deviation over images and positions, averaged over layers, is at most this."""
UNCHANGED = 0.1
"""An unchanged mean: the layers' means change by at most this, on average over layers."""
MUCH = 2.0
"""A much larger spread: the standard deviation has grown by at least this factor."""
EXCEPTIONS = 2
"""All but two layers: at most this many fall below the threshold."""


class Finding(NamedTuple):
    """A statement of the paper, whether the measurement agrees, and what was measured."""

    statement: str
    agrees: bool
    measured: dict[str, Any]


def _fractions(patterns: Patterns) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, " layers"]]:
    """Return the mean and standard deviation of each layer's fraction of positive channels."""
    spreads = [(Spread.of(layer.positive), layer.channels) for layer in patterns.layers]
    means = np.array([spread.mean / channels for spread, channels in spreads])
    return means, np.array([spread.deviation / channels for spread, channels in spreads])


def below_threshold(patterns: Patterns, kind: str = "positive") -> list[str]:
    """Return the expansions with fewer channels at some position than their bottleneck has, the threshold."""
    return [
        layer.name
        for block, layer in patterns.expansions()
        if Spread.of(getattr(layer, kind)).minimum < block.bottleneck
    ]


def compare(before: Patterns, after: Patterns) -> Sequence[Finding]:
    """Check the paper's statements about Fig. 7 (Appendix A) against measurements before and after training.

    The constants above make its wording precise.
    """
    (start, start_spread), (end, end_spread) = _fractions(before), _fractions(after)
    mean, tight = float(start.mean()), float(start_spread.mean())
    change, growth = float(np.abs(end - start).mean()), float(end_spread.mean() / max(tight, 1e-9))
    below = below_threshold(after)
    return [
        Finding(
            "before training about half of the channels are positive, with a tight spread",
            abs(mean - 0.5) <= HALF and tight <= TIGHT,
            {"mean_fraction": mean, "standard_deviation": tight},
        ),
        Finding(
            "after training the mean is unchanged and the spread much larger",
            change <= UNCHANGED and growth >= MUCH,
            {
                "mean_unchanged": change <= UNCHANGED,
                "spread_much_larger": growth >= MUCH,
                "mean_fraction": float(end.mean()),
                "mean_change_of_a_layer": change,
                "standard_deviation": float(end_spread.mean()),
                "times_the_spread_before": growth,
            },
        ),
        Finding(
            "after training all but two layers stay above the threshold",
            len(below) <= EXCEPTIONS,
            {
                "expansions": len(after.blocks),
                "below": below,
                "below_by_kept": below_threshold(after, "kept"),
                "below_before": below_threshold(before),
            },
        ),
    ]
