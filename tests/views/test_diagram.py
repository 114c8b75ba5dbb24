# SPDX-License-Identifier: Apache-2.0
"""Diagrams and the job `diagram`: text, images and refusals."""

import functools
import io
import json
import os
import re
import runpy
import shutil
import stat
import xml.etree.ElementTree as ET

import pytest
from conftest import ROOT
from PIL import Image

import resnet_jax
from resnet_jax import jobs, weights
from resnet_jax.models import names, resnet, structure
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.views import boxes, diagram, graph, graphviz
from resnet_jax.weights import paddle

CONFIG = '--config=configs/resnet.py'
SVG = '{http://www.w3.org/2000/svg}'

needs_graphviz = pytest.mark.skipif(
  shutil.which('dot') is None,
  reason="graphviz's program dot is not installed: no diagram was rendered",
)


@pytest.fixture(scope='module')
def graphs():
  """Graphs of networks."""
  return functools.cache(
    lambda depth: graph.build(resnet.published(depth), 64, 64)
  )


class Text:
  """A diagram's text, parsed: boxes, lines and clusters with attributes."""

  def __init__(self, text):
    self.boxes, self.lines, self.clusters = {}, [], {}
    cluster = ''
    for line in text.splitlines():
      if match := re.match(r' *subgraph "cluster_(.*)" \{$', line):
        cluster = match[1]
      elif line.strip() == '}':
        cluster = ''
      elif match := re.match(r' *"([^"]*)" -> "([^"]*)" \[(.*)\];$', line):
        self.lines.append((match[1], match[2], match[3]))
      elif match := re.match(r' *"([^"]*)" \[(.*)\];$', line):
        self.boxes[match[1]] = match[2]
        self.clusters[match[1]] = cluster

  def drawn_once(self):
    """The boxes, without those that folding adds."""
    folding = (diagram.AGAIN, diagram.ONWARD)
    return {k: v for k, v in self.boxes.items() if not k.endswith(folding)}

  def connections(self):
    """(start, end): attributes, as if there were no folding."""
    return {
      (start.removesuffix(diagram.AGAIN), end): look
      for start, end, look in self.lines
      if not end.endswith(diagram.ONWARD)
    }


def _label(look):
  match = re.search(r'label="([^"]*)"', look)
  return match[1].replace('\\l', ' ').split() if match else []


@pytest.mark.parametrize('depth', [18, 50, 152, 20])
def test_layers_are_drawn_as_the_graph_has_them(graphs, depth):
  network = graphs(depth)
  text = Text(diagram.dot(network, 'A title', 'layers'))
  drawn = text.drawn_once()
  assert set(drawn) == {node.name for node in network.nodes}
  for node in network.nodes:
    look = drawn[node.name]
    said = re.sub(r'<[^>]*>', ' ', look)
    for part in (node.name, node.kind, node.detail, node.activation):
      assert part in said
    assert 'x'.join(map(str, node.shape)) in said
    assert not node.learned or f'{node.learned:,} parameters' in said
    assert text.clusters[node.name] == node.block

  connections = text.connections()
  assert set(connections) == {(e.start, e.end) for e in network.edges}
  nodes = {node.name: node for node in network.nodes}
  for edge in network.edges:
    look = connections[edge.start, edge.end]
    assert ('color="#c8500a", penwidth="2.6"' in look) == edge.shortcut
    if edge.padded:
      assert 'zeros added' in look
      continue
    first, *others = _label(look) or ['']
    owner = first.rpartition('.')[0]
    assert [first, *(owner + part for part in others)] == [
      *(nodes[edge.end].parameters or [''])
    ]


@pytest.mark.parametrize('depth', [18, 101, 44])
@pytest.mark.parametrize('level', ['blocks', 'stages'])
def test_groups_hold_every_layer_once_and_their_connections(
  graphs, depth, level
):
  network = graphs(depth)
  found, lines = boxes.boxes(network, level)
  assert sorted(layer for box in found for layer in box.layers) == sorted(
    node.name for node in network.nodes
  )
  home = {layer: box.name for box in found for layer in box.layers}
  between = {
    (home[edge.start], home[edge.end])
    for edge in network.edges
    if home[edge.start] != home[edge.end]
  }
  assert {(x.start, x.end) for x in lines if x.start != x.end} == between
  counts = structure.ARCHITECTURES[depth].blocks
  if level == 'blocks':
    branches = [box for box in found if box.kind == boxes.BRANCH]
    sums = [box for box in found if box.kind == 'sum']
    assert len(branches) == len(sums) == sum(counts)
    into = [line for line in lines if line.shortcut]
    assert {x.end for x in into} >= {box.name for box in sums}
  else:
    loops = [line for line in lines if line.start == line.end]
    assert [x.label.split()[0] for x in loops] == [str(n) for n in counts]
    assert all(line.shortcut for line in loops)
  text = Text(diagram.dot(network, 'A title', level))
  assert set(text.drawn_once()) == {box.name for box in found}
  assert set(text.connections()) == {(x.start, x.end) for x in lines}


def test_groups_say_what_the_papers_table_says(graphs):
  found, lines = boxes.boxes(graphs(50), 'blocks')
  said = {box.name: box.lines for box in found}
  assert said['res3_1 branch'] == (
    *('1x1, 128, stride 2, ReLU', '3x3, 128, ReLU', '1x1, 512'),
    '512x8x8 · 247,296 parameters',
  )
  assert said['res3_1 projection'][0] == '1x1, 512, stride 2'
  labels = {(line.start, line.end): line.label for line in lines}
  assert labels['res2_3_addto', 'res3_1 branch'] == '_res3_1_branch2*'
  assert labels['res2_3_addto', 'res3_1 projection'] == '_res3_1_branch1_*'
  assert labels['avgpool', 'logits'] == '_output.w0\n.wbias'
  found, lines = boxes.boxes(graphs(50), 'stages')
  said = {box.name: box.lines for box in found}
  assert said['res4'][:2] == ('6 blocks', '1x1, 256 - 3x3, 256 - 1x1, 1024')
  assert {x.label for x in lines if x.start == 'res4' == x.end} == {
    '6 shortcuts\n1 projection'
  }
  loops = [x for x in boxes.boxes(graphs(20), 'stages')[1] if x.start == x.end]
  assert [x.label.split('\n')[1:] for x in loops] == [
    *([], ['1 padded with zeros'], ['1 padded with zeros'])
  ]


@pytest.mark.parametrize('layer', ['pool1', 'res3_1_branch1_bn', 'output'])
def test_what_a_layer_does_not_need_is_pale(graphs, layer):
  network = graphs(18)
  needed = network.needed(layer)
  text = Text(diagram.dot(network, 'A title', 'layers', layer))
  for name, look in text.drawn_once().items():
    assert ('fillcolor="#fcfcfd"' in look) == (name not in needed), name
    assert ('penwidth="4"' in look) == (name == layer), name
  for (start, end), look in text.connections().items():
    pale = not {start, end} <= needed
    assert ('color="#d3d8dd"' in look) == pale, (start, end)


def test_a_group_says_how_much_of_it_is_computed(graphs):
  text = diagram.dot(graphs(50), 'A title', 'stages', 'res4_2_branch2a_bn')
  assert (
    'In colour: res4_2_branch2a_bn, and the 66 layers that are computed for'
    ' it, of 126'
  ) in text
  boxes_ = Text(text).boxes
  assert '11 of 44 layers are computed' in boxes_['res4']
  assert 'are computed' not in boxes_['res3'] + boxes_['res5']


def test_text_that_graphviz_reads_in_its_own_way_is_escaped(graphs):
  text = diagram.dot(graphs(18), 'a "quoted" <b>\\N & more', 'stages')
  assert 'digraph "a \\"quoted\\" <b>\\\\N & more" {' in text
  assert 'a &quot;quoted&quot; &lt;b&gt;\\N &amp; more' in text


# -------------------------------------------------------------------- the job


def _config(tmp_path, file='resnet.py', **settings):
  get_config = runpy.run_path(str(ROOT / 'configs' / file))['get_config']
  config = get_config()
  config.crop_size = 32
  config.layer_num = 18
  config.output = str(tmp_path / 'r.dot')
  config.update(settings)
  return config


def test_the_program_writes_text(run_main, tmp_path):
  settings = ':34,stem_pool=pad1,diagram_level=layers,highlight=layer2'
  done = run_main(f'{CONFIG}{settings},output=r.dot', '--job=diagram', check=0)
  assert done.stdout == 'r.dot\n'
  text = (tmp_path / 'r.dot').read_text()
  assert 'ResNet-34, 1000 classes, stride in 1x1, stem pool pad1' in text
  assert '21,797,672 learned parameters' in text
  assert 'In colour: res3_4_addto' in text
  assert '3x224x224' in text
  assert len(Text(text).drawn_once()) == 1 + len(names.layer_names(34))
  piped = run_main(CONFIG + settings, '--job=diagram', check=0)
  assert piped.stdout == text
  assert os.listdir(tmp_path) == ['r.dot']


@needs_graphviz
def test_the_program_renders(run_main, tmp_path):
  hostile = '-o $(touch x) "quoted" & ü.svg'
  run_main(
    f'{CONFIG}:50,weights=torchvision.v1',
    '--job=diagram',
    f'--config.output={hostile}',
    check=0,
  )
  assert sorted(os.listdir(tmp_path)) == sorted(
    [hostile, hostile.replace('.svg', '.dot')]
  )
  text = (tmp_path / hostile.replace('.svg', '.dot')).read_text()
  assert 'stride in 3x3, stem pool pad1' in text
  tree = ET.parse(tmp_path / hostile)
  drawn = {g.findtext(f'{SVG}title') for g in _of_class(tree, 'node')}
  assert drawn == set(Text(text).boxes)
  assert len(list(_of_class(tree, 'edge'))) == len(Text(text).lines)


def _of_class(tree, name):
  return (g for g in tree.iter(f'{SVG}g') if g.get('class') == name)


@needs_graphviz
@pytest.mark.parametrize('suffix', ['png', 'PNG', 'pdf'])
def test_other_formats(tmp_path, capsys, suffix):
  target = tmp_path / f'r.{suffix}'
  config = _config(tmp_path, diagram_level='stages', output=str(target))
  assert jobs.run('diagram', config) == 0
  assert capsys.readouterr().out.split() == [
    str(tmp_path / 'r.dot'),
    str(target),
  ]
  data = target.read_bytes()
  if suffix == 'pdf':
    assert data.startswith(b'%PDF-')
    return
  image = Image.open(io.BytesIO(data)).convert('RGB')
  assert image.getpixel((1, 1)) == (255, 255, 255)
  assert image.width > 400
  assert image.height > 600


@needs_graphviz
@pytest.mark.parametrize('level', boxes.LEVELS)
@pytest.mark.parametrize('depth', [18, 152])
def test_boxes_stand_in_columns_and_do_not_overlap(graphs, depth, level):
  text = diagram.dot(graphs(depth), 'A title', level)
  laid = json.loads(graphviz.run(text, 'json0'))
  column = dict(re.findall(r'"([^"]*)" \[.*group="column (\d+)"', text))
  rectangles, middles = {}, {}
  for item in laid['objects']:
    if 'pos' not in item:
      continue
    x, y = map(float, item['pos'].split(','))
    width, height = 36 * float(item['width']), 36 * float(item['height'])
    rectangles[item['name']] = (x - width, x + width, y - height, y + height)
    if item['name'] in column:
      middles.setdefault(int(column[item['name']]), []).append(x)
  assert set(rectangles) == set(Text(text).boxes)
  found = sorted(rectangles.values())
  for index, (left, right, bottom, top) in enumerate(found):
    for other in found[index + 1 :]:
      apart = right < other[0] or top < other[2] or other[3] < bottom
      assert apart, (left, other)
  # What follows is straight below, and the columns go from left to right.
  assert all(max(xs) - min(xs) < 1 for xs in middles.values())
  lefts = [min(middles[index]) for index in sorted(middles)]
  assert lefts == sorted(lefts)
  left, bottom, right, top = map(float, laid['bb'].split(','))
  # Points: a screen or two a side, where a strip would have hundreds.
  assert max(right - left, top - bottom) < 72 * 60
  assert (level == 'layers') <= (len(middles) > 1)


def test_without_graphviz_the_text_is_there_and_the_message_says_how(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('PATH', str(tmp_path))
  config = _config(tmp_path, output=str(tmp_path / 'r.svg'))
  with pytest.raises(errors.UserError) as caught:
    jobs.run('diagram', config)
  message = str(caught.value)
  assert f'{tmp_path / "r.dot"} is written. SVG needs graphviz' in message
  assert 'apt install graphviz' in message
  assert 'brew install graphviz' in message
  assert os.listdir(tmp_path) == ['r.dot']


@pytest.mark.parametrize(
  ('script', 'said'),
  [
    ('echo "Format: png not recognized" >&2; exit 1', 'png not recognized'),
    ('cat > /dev/null', 'no message'),
  ],
)
def test_a_program_that_fails_is_quoted(tmp_path, monkeypatch, script, said):
  program = tmp_path / 'bin' / 'dot'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\n{script}\n')
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv('PATH', f'{program.parent}:{os.environ["PATH"]}')
  config = _config(tmp_path, output=str(tmp_path / 'r.png'))
  with pytest.raises(errors.UserError, match='gave no PNG') as caught:
    jobs.run('diagram', config)
  assert said in str(caught.value)
  assert not (tmp_path / 'r.png').exists()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'output': 'r.jpg'}, r"output=r.jpg: .* '.jpg' is none of .dot"),
    ({'output': 'r'}, r"'' is none of .dot"),
    ({'diagram_level': 'layer'}, "Did you mean 'layers'"),
    ({'highlight': 'res2_*'}, r"highlight='res2_\*' stands for 10 layers"),
    ({'highlight': 'res2_1_branch2c_conv'}, "ResNet-18 has no layer 'res2"),
    ({'crop_size': 31}, 'crop_size=31 is not between'),
    ({'layer_num': 19}, 'no ResNet has 19 layers'),
    ({'output': 'no/r.dot'}, 'cannot write the diagram to no/r.dot'),
  ],
)
def test_refusals(tmp_path, monkeypatch, settings, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match=message):
    jobs.run('diagram', _config(tmp_path, **settings))
  assert not os.listdir(tmp_path)


def test_a_files_weights_say_which_network_it_is(tmp_path, capsys):
  model = resnet.published(20).clone(classes=7)
  parameters = weights.untrained(model, 0).parameters
  paddle.write(parameters, tmp_path / 'seven')
  headless = {k: v for k, v in parameters.items() if 'logits' not in k}
  paddle.write(headless, tmp_path / 'headless')
  for name, title in (('seven', '7 classes'), ('headless', 'no head')):
    config = _config(tmp_path, 'cifar.py', weights=str(tmp_path / name))
    config.layer_num = 20
    jobs.run('diagram', config)
    text = (tmp_path / 'r.dot').read_text()
    assert f'ResNet-20, {title}, shortcuts padded' in text
    assert ('"logits"' in text) == (name == 'seven')
  config.highlight = 'output'
  with pytest.raises(errors.UserError, match='these weights have no head'):
    jobs.run('diagram', config)


def test_other_programs_names_can_be_highlighted(tmp_path, capsys):
  jobs.run('diagram', _config(tmp_path, highlight='layer1.0.bn1', output=''))
  said = capsys.readouterr()
  # The box of the layer has the value before its ReLU, too.
  assert 'In colour: res2_1_branch2a_bn,' in said.out
  assert not said.err
  with pytest.raises(errors.UserError, match='conv1_pad, which is no layer'):
    jobs.run('diagram', _config(tmp_path, highlight='conv1_pad', output=''))


# ------------------------------------------------------- notebook, documents


@needs_graphviz
def test_a_notebook_shows_it(monkeypatch, tmp_path):
  drawn = resnet_jax.diagram(
    'resnet18', level='stages', highlight='res3_1_addto'
  )
  assert 'In colour: res3_1_addto' in drawn.dot
  assert ET.fromstring(drawn._repr_svg_()).tag == f'{SVG}svg'
  assert drawn.render('pdf').startswith(b'%PDF-')
  assert repr(drawn).startswith("Diagram('ResNet-18, 1000 classes")
  with pytest.raises(errors.UserError, match="unknown format 'jpg'"):
    drawn.render('jpg')
  monkeypatch.setenv('PATH', str(tmp_path))
  assert drawn._repr_svg_() is None


def test_a_loaded_network_is_drawn_as_it_is():
  with pytest.warns(UserWarning, match='UNTRAINED'):
    model = resnet_jax.load(18, weights='random', stride_in='3x3', crop_size=96)
  drawn = model.diagram(level='layers')
  assert drawn.title == resnet.describe(
    resnet.ResNet(18, variant=Variant(stride_in='3x3'))
  )
  assert '3x96x96' in drawn.dot
  variant = resnet_jax.diagram(18, stride_in='3x3', crop_size=96)
  assert variant.dot == model.diagram().dot
  assert 'In colour: conv1_bn,' in model.diagram(highlight='bn1').dot
  with pytest.raises(errors.UserError, match="unknown diagram_level 'all'"):
    model.diagram(level='all')


def test_the_documents_image_is_of_todays_diagram():
  tree = ET.parse(ROOT / 'docs/images/resnet50.svg')
  text = Text(resnet_jax.diagram(50).dot)
  drawn = {g.findtext(f'{SVG}title') for g in _of_class(tree, 'node')}
  assert drawn == set(text.boxes)
  assert len(list(_of_class(tree, 'edge'))) == len(text.lines)
  said = {t.text for t in tree.iter(f'{SVG}text')}
  for look in text.drawn_once().values():
    for line in re.findall(r'point-size="10"[^>]*>([^<]*)<', look):
      assert line in said
