"""Percentiles of histograms: what a table second by second asks for by the ten thousand."""

from collections.abc import Sequence

import numpy as np
from hdrh.histogram import HdrHistogram


def values_ms(found: HdrHistogram, percentiles: Sequence[float]) -> list[float]:
    """How long that share (0 to 100) of all requests took at most, ms; 0 where there were none. Pure.

    As `get_value_at_percentile` of the library has it, which walks through all counts for every one of them.
    """
    if not found.get_total_count():
        return [0.0] * len(percentiles)
    targets = [found.get_target_count_at_percentile(percentile) for percentile in percentiles]
    indexes = np.searchsorted(np.cumsum(np.ctypeslib.as_array(found.counts)), targets)
    values_us = [found.get_value_from_index(int(index)) for index in indexes]
    return [
        (found.get_highest_equivalent_value(value_us) if percentile else value_us) / 1000
        for percentile, value_us in zip(percentiles, values_us, strict=True)
    ]
