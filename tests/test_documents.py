# SPDX-License-Identifier: Apache-2.0
"""README and docs/: what they say is so, and what they tell to type runs."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import urllib.parse

import pytest
import tables
from conftest import ROOT
from makers import HANGS

from resnet_jax import configuration, jobs

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# What a fenced block is: run by the tests; what the block above it prints;
# and what needs a network, other files or an installation.
RUN, OUTPUT, OTHER = ('bash', 'python'), 'text', 'sh'


def _blocks(page):
  """(language, text) of each fenced block."""
  found = re.findall(
    r'^```(\w*)\n(.*?)^```$', page.read_text('utf-8'), re.M | re.S
  )
  return [(language, text) for language, text in found]


def _prose(page):
  return re.sub(r'^```.*?^```$', '', page.read_text('utf-8'), flags=re.M | re.S)


def _pages(has):
  return [
    pytest.param(page, id=page.stem)
    for page in PAGES
    if any(has(language) for language, _ in _blocks(page))
  ]


def _same(line, printed):
  """Whether a line is as documented, but for times, free disk and cores."""
  pattern = re.escape(line).replace(re.escape('...'), '.*')
  if re.search(r'images/s| in [\d.]+ s\b| GB free|cpu x', line):
    pattern = re.sub(r'\d+(\\\.\d+)?', r'[\\d.e+]+', pattern)
  return re.fullmatch(pattern, printed)


@pytest.mark.parametrize('page', _pages(lambda language: language in RUN))
def test_what_a_page_tells_to_type_runs_and_prints_what_it_says(page, tmp_path):
  shutil.copytree(ROOT / 'example', tmp_path / 'example')
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  programs = tmp_path / 'programs'
  programs.mkdir()
  (programs / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  (programs / 'python').chmod(0o755)
  environment = os.environ | {
    'PATH': f'{programs}{os.pathsep}{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'RESNET_JAX_OFFLINE': '1',
  }
  starts = {
    'bash': ['bash', '-euo', 'pipefail', '-c'],
    'python': [sys.executable, '-c'],
  }
  printed = None
  for language, text in _blocks(page):
    if language in RUN:
      done = subprocess.run(
        [*starts[language], text],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANGS,
        check=False,
      )
      assert done.returncode == 0, f'{text}: {done.stdout}'
      printed = done.stdout.splitlines()
    elif language == OUTPUT and printed is not None:
      for line in text.splitlines():
        assert any(_same(line, other) for other in printed), (line, printed)


@pytest.mark.parametrize('page', _pages(bool))
def test_every_block_says_whether_it_runs(page):
  for language, text in _blocks(page):
    assert language in (*RUN, OUTPUT, OTHER), text
    # Nothing hinders these from running in the test.
    assert language != OTHER or 'weights=random' not in text, text


def _slug(heading):
  return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', [pytest.param(p, id=p.stem) for p in PAGES])
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', _prose(page)):
    link = urllib.parse.urlsplit(target)
    if link.scheme:
      # Only their form: nothing is asked of the network.
      assert link.scheme == 'https', target
      assert re.fullmatch(r'[\w-]+(\.[\w-]+)+', link.netloc), target
      continue
    file = page.parent / link.path if link.path else page
    assert file.is_file(), target
    if link.fragment:
      headings = re.findall(r'^#+ (.*)$', _prose(file), re.M)
      assert link.fragment in map(_slug, headings), target


@pytest.mark.parametrize(('name', 'file'), tables.PLACES)
def test_the_tables_are_up_to_date(name, file):
  path, text = tables.updated(name, file)
  assert path.read_text() == text, 'run experiments/tables.py'


def test_the_settings_and_their_defaults_are_those_of_the_program():
  path = ROOT / configuration.DEFAULT
  config = runpy.run_path(str(path))['get_config']()
  rows = re.findall(
    r'^\| (`.*?`) \| (.*?) ?\| ',
    (ROOT / 'docs/settings.md').read_text('utf-8'),
    re.M,
  )
  documented = {
    key: default
    for keys, default in rows
    for key in re.findall('`(.*?)`', keys)
  }
  written = {
    key: str(value).lower()
    if isinstance(value, bool)
    else f'{value:g}'
    if isinstance(value, float)
    else str(value)
    for key, value in config.items()
  }
  assert documented == written


def test_jobs_and_settings_that_the_pages_name_are_there():
  path = ROOT / configuration.DEFAULT
  keys = set(runpy.run_path(str(path))['get_config']())
  for page in PAGES:
    text = page.read_text('utf-8')
    assert set(re.findall(r'--config\.(\w+)', text)) <= keys, page
    assert set(re.findall(r'--job=([a-z]+)', text)) <= set(jobs.JOBS), page
  readme = (ROOT / 'README.md').read_text('utf-8')
  for job in jobs.JOBS:
    assert f'| `{job}` |' in readme, job


def test_the_extras_that_the_pages_name_are_there():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  for page in PAGES:
    for extra in re.findall(
      r"'(?:\.|resnet-jax-zoo)\[(\w+)\]'", page.read_text()
    ):
      assert extra in project['optional-dependencies'], page
