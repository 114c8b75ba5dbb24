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

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Rate:
  """A proportion, such as an error rate.

  Attributes:
    count: errors.
    total: images.
  """

  count: int
  total: int

  @property
  def percent(self) -> float:
    """The rate, 0 to 100; NaN without images."""
    return 100 * self.count / self.total if self.total else math.nan

  def interval(self) -> tuple[float, float]:
    """Wilson's score interval of 95%, percent; 0 to 100 without images."""
    if not self.total:
      return 0.0, 100.0
    test = stats.binomtest(self.count, self.total)
    low, high = test.proportion_ci(0.95, 'wilson')
    return 100 * float(low), 100 * float(high)


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
    if not total:
      return 1.0
    return float(stats.binomtest(self.only_first, total).pvalue)

  @property
  def statistic(self) -> float:
    """Chi-square with one degree of freedom, corrected for continuity."""
    total = self.only_first + self.only_second
    difference = abs(self.only_first - self.only_second)
    return max(0, difference - 1) ** 2 / total if total else 0.0

  @property
  def corrected_p(self) -> float:
    """Two-sided, from `statistic`; near `exact_p` for large counts."""
    return float(stats.chi2.sf(self.statistic, 1))
