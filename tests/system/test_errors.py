# SPDX-License-Identifier: Apache-2.0
"""The one exception: near matches, and names that a hostile file chose."""

import pytest

from resnet_jax.system import errors


def test_names_from_a_file_cannot_steer_the_terminal():
  error = errors.UserError('bad name \x1b[2J\x9b\u202e\r, next\n\tline')
  assert str(error) == ('bad name \\x1b[2J\\x9b\\u202e\\r, next\n\tline')


def test_an_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(errors.UserError) as caught:
    errors.check_choice('colour', 'gren', ('red', 'green'))
  assert str(caught.value) == (
    "unknown colour 'gren'. Did you mean 'green'? Allowed: red, green."
  )
