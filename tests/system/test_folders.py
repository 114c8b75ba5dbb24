# SPDX-License-Identifier: Apache-2.0
"""The folders that the system and the user choose."""

import os
import sys

import pytest

from resnet_jax.system import errors, folders


@pytest.mark.parametrize(
  ('platform', 'variables', 'expected'),
  [
    ('linux', {}, '/home/me/.cache/resnet_jax'),
    ('linux', {'XDG_CACHE_HOME': '/x'}, '/x/resnet_jax'),
    ('linux', {'XDG_CACHE_HOME': 'x'}, '/home/me/.cache/resnet_jax'),
    ('linux', {'RESNET_JAX_CACHE': '~/own'}, '/home/me/own'),
    ('linux', {'RESNET_JAX_CACHE': ''}, '/home/me/.cache/resnet_jax'),
    ('darwin', {}, '/home/me/Library/Caches/resnet_jax'),
    ('darwin', {'XDG_CACHE_HOME': '/x'}, '/home/me/Library/Caches/resnet_jax'),
    ('win32', {'LOCALAPPDATA': '/local'}, '/local/resnet_jax'),
    ('win32', {}, '/home/me/AppData/Local/resnet_jax'),
  ],
)
def test_the_cache_lies_where_the_system_has_caches(
  monkeypatch, platform, variables, expected
):
  for name in ('RESNET_JAX_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'):
    monkeypatch.delenv(name, raising=False)
  for name, value in ({'HOME': '/home/me'} | variables).items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(sys, 'platform', platform)
  assert folders.cache_directory().as_posix() == expected


def test_without_a_home(monkeypatch):
  monkeypatch.delenv('RESNET_JAX_CACHE', raising=False)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  with pytest.raises(errors.UserError, match='Name a folder in RESNET_JAX_CAC'):
    folders.cache_directory()
