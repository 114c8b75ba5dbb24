# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of error rates, and a test of their difference.

Sources: E. B. Wilson, "Probable inference, the law of succession, and
statistical inference", J. Am. Stat. Assoc. 22 (1927), pages 209 to 212;
Q. McNemar, "Note on the sampling error of the difference between correlated
proportions or percentages", Psychometrika 12 (1947), pages 153 to 157; the
continuity correction is A. L. Edwards', Psychometrika 13 (1948).
"""

import dataclasses
import math

from scipy import special

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Rate:
  """A proportion, such as an error rate.

  Attributes:
    count: errors.
    total: images.
  """

  count: int
  total: int

  def __post_init__(self) -> None:
    if not 0 <= self.count <= self.total:
      raise ValueError(f'{self.count} of {self.total}')

  @property
  def percent(self) -> float:
    """The rate, 0 to 100; NaN without images."""
    return 100 * self.count / self.total if self.total else math.nan

  def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval, percent; 0 to 100 without images."""
    low, high = wilson(self.count, self.total, confidence)
    return 100 * low, 100 * high


def wilson(
  count: int, total: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
  """Wilson's score interval of a proportion, 0 to 1.

  It holds the proportions p with |count / total - p| of at most z standard
  deviations, sqrt(p (1 - p) / total).
  """
  if not total:
    return 0.0, 1.0
  z2 = special.ndtri((1 + confidence) / 2) ** 2
  proportion = count / total
  middle = proportion + z2 / (2 * total)
  spread = math.sqrt(
    z2 * (proportion * (1 - proportion) / total + z2 / (4 * total**2))
  )
  scale = 1 + z2 / total
  # Exact at 0 and 1, where the formula would round.
  low = 0.0 if count == 0 else (middle - spread) / scale
  high = 1.0 if count == total else (middle + spread) / scale
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class McNemar:
  """McNemar's paired test of two classifiers on the same images.

  Attributes:
    only_first: images that only the first classifies correctly.
    only_second: images that only the second classifies correctly.
  """

  only_first: int
  only_second: int

  @property
  def exact_p(self) -> float:
    """Two-sided, from the binomial distribution; 1 without differences."""
    total = self.only_first + self.only_second
    less = min(self.only_first, self.only_second)
    # Twice the smaller tail, which exceeds 1 where the counts are equal.
    return min(1.0, 2 * float(special.bdtr(less, total, 0.5)))

  @property
  def statistic(self) -> float:
    """Chi-square with one degree of freedom, corrected for continuity."""
    total = self.only_first + self.only_second
    difference = abs(self.only_first - self.only_second)
    return max(0, difference - 1) ** 2 / total if total else 0.0

  @property
  def corrected_p(self) -> float:
    """Two-sided, from `statistic`; near `exact_p` for large counts."""
    return float(special.chdtrc(1, self.statistic))
