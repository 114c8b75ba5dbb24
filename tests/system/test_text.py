# SPDX-License-Identifier: Apache-2.0
"""Counts and lists in messages."""

import pytest

from resnet_jax.system import text


@pytest.mark.parametrize(
  ('count', 'said'),
  [(0, '0 images'), (1, '1 image'), (2, '2 images'), (50000, '50,000 images')],
)
def test_counted(count, said):
  assert text.counted(count, 'image') == said


@pytest.mark.parametrize(
  ('names', 'said'),
  [('', ''), ('a', 'a'), ('abc', 'a, b, c'), ('abcde', 'a, b, c and 2 more')],
)
def test_some(names, said):
  assert text.some(names) == said


def test_some_names_are_on_one_line():
  assert text.some(['a\nb', 'c']) == 'a\\nb, c'


def test_one_line():
  assert text.one_line('grün 猫 \\') == 'grün 猫 \\'
  given = 'a\n\r\tb\x1b[31m\u2028\udcfc'
  assert text.one_line(given) == r'a\n\r\tb\x1b[31m\u2028\udcfc'


def test_plain():
  assert text.plain('a\x1b[31m\n\tü\u202e') == 'a\\x1b[31m\n\tü\\u202e'
