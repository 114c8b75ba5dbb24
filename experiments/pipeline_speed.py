# SPDX-License-Identifier: Apache-2.0
"""Speed from images to features: decoding, whole runs, start-up, scaling.

  python experiments/pipeline_speed.py decode --data=photos
  python experiments/pipeline_speed.py end_to_end --data=photos
  python experiments/pipeline_speed.py batch_sizes --counts 1 2 4 8 16 32
  python experiments/pipeline_speed.py start --data=photos --against=OTHER
  python experiments/pipeline_speed.py growth --data=photos
  python experiments/pipeline_speed.py layers --data=photos
  python experiments/pipeline_speed.py plot

Each measurement appends JSON lines to experiments/results/pipeline.jsonl.
`plot` draws docs/images/growth.svg from those of `growth`, with Matplotlib (the
extra `views`).  Images repeat if --count exceeds those of the folder.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, features

from resnet_jax.data import crops, decoding, pipeline, preprocess, sources
from resnet_jax.engine import devices, runner
from resnet_jax.features import store, table
from resnet_jax.models import resnet, structure
from resnet_jax.system import cores
from resnet_jax.weights import random

RESULTS = pathlib.Path('experiments/results/pipeline.jsonl')
PLOT = pathlib.Path('docs/images/growth.svg')
EXACT = preprocess.Preprocess()
SCALED = dataclasses.replace(EXACT, decode='scaled')

# The measurements that `main` takes.
MEASUREMENTS = (
  *('decode', 'end_to_end', 'batch_sizes', 'start', 'growth', 'layers'),
  'plot',
)

Line = dict[str, Any]


def machine() -> Line:
  """The machine and the versions that a figure belongs to."""
  packages = ('jax', 'jaxlib', 'numpy', 'pillow')
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'processor': _processor(),
    'cores': cores.count(),
    'python': platform.python_version(),
    'libjpeg_turbo': features.version_feature('libjpeg_turbo'),
    'versions': {name: importlib.metadata.version(name) for name in packages},
  }


def keep(path: pathlib.Path, *lines: Line) -> None:
  """Appends results to a file, a JSON line each."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a', encoding='utf-8') as file:
    file.writelines(json.dumps(line) + '\n' for line in lines)


# Widest first, as /proc/cpuinfo calls them.
_VECTORS = ('avx512f', 'avx2')


def _processor() -> str:
  """Its name, and what tells apart those that a host calls alike."""
  told: dict[str, str] = {}
  with open('/proc/cpuinfo', encoding='utf-8') as lines:
    for line in lines:
      name, _, value = line.partition(':')
      told.setdefault(name.strip(), value.strip())
  if 'model name' not in told:
    return platform.processor()
  flags = told.get('flags', '').split()
  vectors = next((v for v in _VECTORS if v in flags), 'no AVX2')
  kind = (
    f'family {told.get("cpu family")}, model {told.get("model")}, {vectors}'
  )
  return f'{told["model name"]} ({kind})'


def spread(seconds: Sequence[float], images: int) -> Line:
  """Images/s of repeated measurements: median, minimum, maximum."""
  rates = sorted(images / value for value in seconds)
  return {
    'images_per_second': statistics.median(rates),
    'least': rates[0],
    'most': rates[-1],
  }


# ------------------------------------------------------------------- decoding


def resized_then_cropped(image: Image.Image) -> np.ndarray:
  """EXACT as a script with Pillow would do it: (224, 224, 3).

  The same pixels, unless Pillow 13 resizes a tall image vertically first.
  """
  short = min(image.size)
  width, height = (
    int(side * EXACT.resize_size / short + 0.5) for side in image.size
  )
  resized = image.resize((width, height), Image.Resampling.LANCZOS)
  left, top = (width - 224) // 2, (height - 224) // 2
  return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def decode_of_a_core(
  images: Sequence[bytes], repeats: int = 5
) -> Iterator[Line]:
  """Ways of decoding, in one thread, by the thread's CPU time."""
  decoded = [decoding.decode(data) for data in images]
  ways: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
    'decode': (decoding.decode, images),
    'resize, then crop': (resized_then_cropped, decoded),
    'the crop, the same pixels': (
      lambda p: crops.cut(p, EXACT),
      decoded,
    ),
    'crop folded into the resize': (
      lambda p: crops.crops_of(p, SCALED),
      decoded,
    ),
    'decode=exact': (lambda d: crops.crops_of(d, EXACT), images),
    'decode=scaled': (lambda d: crops.crops_of(d, SCALED), images),
  }
  if binding := _simplejpeg():
    ways['decode by simplejpeg'] = (
      lambda d: Image.fromarray(binding.decode_jpeg(d)),
      [d for d in images if d.startswith(b'\xff\xd8')],
    )
  times: dict[str, list[float]] = {name: [] for name in ways}
  # Alternately, so that disturbances hit all alike.
  for _ in range(repeats):
    for name, (way, given) in ways.items():
      begin = time.thread_time()
      for one in given:
        way(one)
      times[name].append(time.thread_time() - begin)
  for name, (_, given) in ways.items():
    yield {'what': 'decode', 'way': name, **spread(times[name], len(given))}


def _simplejpeg() -> Any:
  try:
    import simplejpeg  # noqa: PLC0415 - measured only where it is installed
  except ImportError:
    return None
  return simplejpeg


def decode_differences(images: Sequence[bytes]) -> Iterator[Line]:
  """The difference of other ways' pixels from those of decode=exact."""
  decoded = [decoding.decode(data) for data in images]
  exact = [crops.cut(image, EXACT) for image in decoded]
  found = {
    'resize, then crop': [resized_then_cropped(p)[None] for p in decoded],
    'decode=scaled': [crops.crops_of(d, SCALED) for d in images],
    'crop folded into the resize': [crops.crops_of(p, SCALED) for p in decoded],
  }
  if binding := _simplejpeg():
    found['decode by simplejpeg'] = [
      crops.cut(Image.fromarray(binding.decode_jpeg(d)), EXACT)
      if d.startswith(b'\xff\xd8')
      else e
      for d, e in zip(images, exact, strict=True)
    ]
  for name, values in found.items():
    off = [
      np.abs(a.astype(int) - b) for a, b in zip(values, exact, strict=True)
    ]
    yield {
      'what': 'decode differences',
      'way': name,
      'images': len(off),
      'images_that_differ': sum(bool(d.any()) for d in off),
      'mean': float(np.mean([d.mean() for d in off])),
      'most': int(max(d.max() for d in off)),
      'share_of_values': float(np.mean([(d > 0).mean() for d in off])),
    }


def _crops(data: bytes) -> np.ndarray:
  return crops.crops_of(data, EXACT)


def decode_together(
  images: Sequence[bytes], repeats: int = 3
) -> Iterator[Line]:
  """Threads compared with processes, without the start of the workers."""
  kinds = {
    'threads': concurrent.futures.ThreadPoolExecutor,
    'processes': concurrent.futures.ProcessPoolExecutor,
  }
  for kind, workers in itertools.product(kinds, (1, 2, 4)):
    seconds = []
    with kinds[kind](workers) as pool:
      list(pool.map(_crops, images[: 2 * workers]))
      for _ in range(repeats):
        begin = time.perf_counter()
        for _ in pool.map(_crops, images, chunksize=8):
          pass
        seconds.append(time.perf_counter() - begin)
    yield {
      'what': 'workers',
      'way': kind,
      'workers': workers,
      **spread(seconds, len(images)),
    }


# -------------------------------------------------------------- the whole run


@dataclasses.dataclass(frozen=True)
class Run:
  """The cost of a run of the program, in a process of its own."""

  seconds: float
  cpu_seconds: float
  peak_bytes: int
  said: str


def run_program(
  *settings: str, environment: dict[str, str] | None = None
) -> Run:
  """Runs `--job=extract` into a temporary folder."""
  with tempfile.TemporaryDirectory() as folder:
    output = f'output_dir={folder}/features'
    return run_job('extract', *settings, output, environment=environment)


def run_job(
  job: str, *settings: str, environment: dict[str, str] | None = None
) -> Run:
  """Runs a job of the program."""
  command = [
    *(sys.executable, '-m', 'resnet_jax.main', f'--job={job}'),
    *(f'--config.{setting}' for setting in settings),
  ]
  begin = time.perf_counter()
  with tempfile.TemporaryFile() as said:
    process = subprocess.Popen(
      command, stderr=said, env=os.environ | (environment or {})
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    said.seek(0)
    text = said.read().decode()
  if process.returncode:
    raise RuntimeError(f'{command} failed: {text}')
  return Run(seconds, used.ru_utime + used.ru_stime, _bytes(used), text)


def _bytes(used: resource.struct_rusage) -> int:
  # Linux counts kilobytes, macOS bytes.
  return used.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def write_list(
  folder: pathlib.Path, data: pathlib.Path, count: int
) -> pathlib.Path:
  """A list file of `count` images, which repeats those of a folder."""
  found = [item.name for item in sources.open_source(str(data)).items]
  paths = (pathlib.Path(name).absolute() for name in itertools.cycle(found))
  path = folder / f'{count}.list'
  path.write_text(
    ''.join(f'{p}\n' for p in itertools.islice(paths, count)), 'utf-8'
  )
  return path


def run_on(data: pathlib.Path, count: int, *settings: str) -> Run:
  """`run_program` for `count` images of a folder."""
  with tempfile.TemporaryDirectory() as folder:
    listed = write_list(pathlib.Path(folder), data, count)
    return run_program(f'data={listed}', *settings)


def added_rate(seconds: Callable[[int], float], count: int) -> float:
  """Images/s of the last three quarters of `count` images.

  The difference of two runs: both contain the start-up, and the images that are
  decoded during it.

  Args:
    seconds: gives the time of a run, for a number of images.
    count: images of the longer run.
  """
  few = count // 4
  return (count - few) / (seconds(count) - seconds(few))


def program_rate(data: pathlib.Path, count: int, *settings: str) -> float:
  """The `added_rate` of our program for the images of a folder."""
  return added_rate(lambda n: run_on(data, n, *settings).seconds, count)


def end_to_end(
  data: pathlib.Path, count: int, *settings: str, repeats: int = 8
) -> Line:
  """A run, and the bounds that its two stages alone set.

  `share_of_slower` divides the run's rate by that of the slower stage, decoding
  or computing, each with all cores to itself.  On a CPU both stages need the
  same cores, so an image takes at least the sum of both times: `share_of_cores`
  is the share of that bound.  Each share is of adjacent measurements, in
  alternating order, so that a drift of the machine's speed cancels out.
  """
  measurements = {
    'images_per_second': lambda: program_rate(data, count, *settings),
    'decode_alone': lambda: _decode_alone(data, count),
    'compute_alone': lambda: _compute_alone(settings, count),
  }
  rounds = []
  for number in range(repeats):
    order = list(measurements)[:: -1 if number % 2 else 1]
    rounds.append({name: measurements[name]() for name in order})
  shares = {
    'share_of_slower': [
      r['images_per_second'] / min(r['decode_alone'], r['compute_alone'])
      for r in rounds
    ],
    'share_of_cores': [
      r['images_per_second'] * (1 / r['decode_alone'] + 1 / r['compute_alone'])
      for r in rounds
    ],
  }
  every = {name: [r[name] for r in rounds] for name in measurements} | shares
  return {
    'what': 'end to end',
    'settings': list(settings),
    'images': count,
    **{name: statistics.median(values) for name, values in every.items()},
    'all': every,
  }


def _decode_alone(data: pathlib.Path, count: int) -> float:
  """Images/s of the pipeline without a consumer."""
  with tempfile.TemporaryDirectory() as folder:
    listed = write_list(pathlib.Path(folder), data, count)
    items = sources.open_source(str(listed)).items
  begin = time.perf_counter()
  threads = cores.count()
  for _ in pipeline.batches(items, EXACT, rows=8, threads=threads):
    pass
  return len(items) / (time.perf_counter() - begin)


def _compute_alone(settings: Sequence[str], count: int) -> float:
  """Images/s of a run whose images cost almost nothing to decode."""
  with tempfile.TemporaryDirectory() as folder:
    # The network's size, so nothing is resized; PPM, so nothing is unpacked.
    file = io.BytesIO()
    Image.new('RGB', (224, 224), (120, 110, 100)).save(file, 'PPM')
    (pathlib.Path(folder) / '0.ppm').write_bytes(file.getvalue())
    return program_rate(pathlib.Path(folder), count, *settings, 'resize=none')


def batch_sizes(
  sizes: Sequence[int], count: int, *settings: str
) -> Iterator[Line]:
  """Compute only, at each batch size; 0: the program's choice."""
  for size in sizes:
    rate = _compute_alone((*settings, f'batch_size={size}'), count)
    yield {
      'what': 'batch sizes',
      'settings': list(settings),
      'batch_size': size,
      'images': count,
      'images_per_second': rate,
    }


# ------------------------------------------------------------------ the start


# Runs the program, and prints the seconds of its parts.
_PARTS = """
import atexit, collections, json, time
begin = time.perf_counter()
import jax
from resnet_jax import main
from resnet_jax.jobs import extract, setup
parts = collections.Counter(imports=time.perf_counter() - begin)
names = {
  'jaxpr_trace_duration': 'tracing',
  'jaxpr_to_mlir_module_duration': 'lowering',
  'backend_compile_duration': 'cache',
}
def listen(event, seconds, **details):
  name = names.get(event.rpartition('/')[2])
  if name and 'run' in str(details.get('fun_name')):
    parts[name] = max(parts[name], seconds)
jax.monitoring.register_event_duration_secs_listener(listen)
load = setup.load_weights
def timed(*given, **more):
  begin = time.perf_counter()
  try:
    return load(*given, **more)
  finally:
    parts['weights'] += time.perf_counter() - begin
setup.load_weights = timed
# The program ends with an exit.
atexit.register(lambda: print(json.dumps(parts)))
main.run()
"""


def start(
  data: pathlib.Path, *settings: str, repeats: int = 5, against: str = ''
) -> Line:
  """Seconds from the start of the process to its end, for one image.

  Args:
    data: images, of which one is taken.
    settings: of the network; its weights are read from a file.
    repeats: of each run, in turns; the best counts.
    against: another checkout, measured beside.
  """
  image = sources.open_source(str(data)).items[0].name
  runs: dict[str, list[Run]] = {}
  help_: list[float] = []
  parts: list[dict[str, float]] = []
  program = [sys.executable, '-m', 'resnet_jax.main']
  with tempfile.TemporaryDirectory() as folder:
    file = f'{folder}/weights.safetensors'
    given = [f'--config.{setting}' for setting in settings]
    subprocess.run(
      [*program, '--job=convert', *given, f'--config.output={file}'],
      capture_output=True,
      check=True,
    )
    own = [f'data={image}', *settings, f'weights={file}']
    for number in range(repeats):
      for name, path in {'': os.getcwd(), 'before_': against}.items():
        kept = {
          'RESNET_JAX_COMPILATION_CACHE': f'{folder}/{name}{number}',
          'PYTHONPATH': path,
          # Else the working directory comes first.
          'PYTHONSAFEPATH': '1',
        }
        for what in ('cold', 'kept') if path else ():
          run = run_program(*own, environment=kept)
          runs.setdefault(f'{name}{what}', []).append(run)
      begin = time.perf_counter()
      subprocess.run(
        [*program, '--help'], stdout=subprocess.DEVNULL, check=False
      )
      help_.append(time.perf_counter() - begin)
      done = subprocess.run(
        [
          *(sys.executable, '-c', _PARTS, '--job=extract'),
          *(f'--config.{setting}' for setting in own),
          f'--config.output_dir={folder}/features{number}',
        ],
        env=os.environ | {'RESNET_JAX_COMPILATION_CACHE': f'{folder}/{number}'},
        capture_output=True,
        text=True,
        check=True,
      )
      parts.append(json.loads(done.stdout.splitlines()[-1]))
  return {
    'what': 'start',
    'settings': [*settings[:1], 'weights in safetensors'],
    **{name: min(run.seconds for run in of) for name, of in runs.items()},
    'cpu': {
      name: min(run.cpu_seconds for run in of) for name, of in runs.items()
    },
    'parts': {name: min(part[name] for part in parts) for name in parts[0]},
    'help': min(help_),
    'all': {name: [run.seconds for run in of] for name, of in runs.items()},
  }


# ----------------------------------------------------------------- the growth


def growth(
  data: pathlib.Path, counts: Sequence[int], *settings: str
) -> Iterator[Line]:
  """Seconds and peak memory against the number of images.

  `added_per_second` is the rate of the images that a run has beyond the run
  before.
  """
  before: tuple[int, float] | None = None
  for count in counts:
    runs: list[Run] = []
    # Short runs vary more, so they are repeated.
    while len(runs) < 3 and sum(run.seconds for run in runs) < 60:
      runs.append(run_on(data, count, *settings))
    seconds = statistics.median(run.seconds for run in runs)
    yield {
      'what': 'growth',
      'settings': list(settings),
      'images': count,
      'added_per_second': before
      and (count - before[0]) / (seconds - before[1]),
      'seconds': seconds,
      'all': [run.seconds for run in runs],
      'peak_bytes': max(run.peak_bytes for run in runs),
    }
    before = count, seconds


def layers(
  data: pathlib.Path, count: int, *settings: str, repeats: int = 3
) -> Iterator[Line]:
  """All layers compared with one: wall time and CPU time.

  Also measures three parts alone, in CPU seconds, which do not depend on other
  work: the network, the transfer of its values to the host as (C, H, W), and
  storing them.  The rest of a run is start-up and decoding.
  """
  given = dict(setting.split('=', 1) for setting in settings)
  depth = int(given.get('layer_num', structure.DEFAULT_DEPTH))
  found: dict[str, list[Run]] = {'avgpool': [], '*': []}
  # Alternately, because a disk's speed varies.
  for _ in range(repeats):
    for asked, runs in found.items():
      runs.append(run_on(data, count, f'output_layer={asked}', *settings))
  every = resnet.layer_names(resnet.ResNet(depth))
  for asked, runs in found.items():
    wanted = every if asked == '*' else (asked,)
    yield {
      'what': 'layers',
      'settings': list(settings),
      'layers': asked,
      'images': count,
      'seconds': statistics.median(run.seconds for run in runs),
      'all': [run.seconds for run in runs],
      'cpu_seconds': statistics.median(run.cpu_seconds for run in runs),
      'all_cpu_seconds': [run.cpu_seconds for run in runs],
      **_alone(depth, wanted, count, _batch_rows(runs[0].said)),
    }


def _batch_rows(said: str) -> int:
  [line] = [x for x in said.splitlines() if x.endswith('images at a time')]
  return int(line.split()[-5])


def _alone(depth: int, asked: Sequence[str], count: int, rows: int) -> Line:
  """CPU seconds for `count` images, in batches of `rows`."""
  devices.use_cores()
  model = resnet.ResNet(depth)
  run = runner.Runner(
    model,
    random.initialise(model, 0),
    asked,
    EXACT,
    execution=runner.Execution(devices.select(False)),
  )
  images = np.zeros((rows, *EXACT.shape), np.uint8)
  work = run.repeated(images)
  shapes = resnet.value_shapes(model, EXACT.crop_size, EXACT.crop_size)
  plan = table.FeatureTable(
    [str(row) for row in range(count)],
    [-1] * count,
    {name: shapes[name] for name in asked},
    'float32',
    rows,
  )
  batches = -(-count // rows)

  def cores_seconds(do: Callable[[], object], times: int) -> float:
    do()
    begin = time.process_time()
    for _ in range(times):
      do()
    return (time.process_time() - begin) / times * batches

  result = run(images)
  values = run.fetch(result)
  with tempfile.TemporaryDirectory() as folder:
    store.create(pathlib.Path(folder), plan, table.Facts({}, {}))
    writer = store.StoreWriter(pathlib.Path(folder), plan)
    begin = time.process_time()
    for start in range(0, count, rows):
      batch = min(rows, count - start)
      cut = {name: value[:batch] for name, value in values.items()}
      writer.write(start, cut, [''] * batch)
    storing = time.process_time() - begin
  return {
    'bytes': count * plan.row_bytes(),
    'network_cpu_seconds': cores_seconds(work, 5),
    'fetch_cpu_seconds': cores_seconds(lambda: run.fetch(result), 5),
    'store_cpu_seconds': storing,
  }


def plot(results: pathlib.Path = RESULTS, target: pathlib.Path = PLOT) -> None:
  """Draws the latest measurement of each number of images."""
  try:
    import matplotlib  # noqa: PLC0415 - an extra
  except ImportError as error:
    raise SystemExit(
      "the plot needs Matplotlib: pip install 'resnet-jax-zoo[views]'."
    ) from error
  matplotlib.use('svg')
  # Makes the file reproducible.
  matplotlib.rcParams['svg.hashsalt'] = 'resnet_jax'
  from matplotlib import pyplot  # noqa: PLC0415 - after the backend

  lines = [json.loads(line) for line in results.read_text('utf-8').splitlines()]
  series: dict[str, dict[int, Line]] = {}
  for line in lines:
    if line['what'] == 'growth':
      name = ', '.join(line['settings']) or 'defaults'
      series.setdefault(name, {})[line['images']] = line
  figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(9, 3.2))
  for name, points in series.items():
    counts = sorted(points)
    # The smallest run has no run before it.
    later = [n for n in counts if points[n]['added_per_second']]
    speed.plot(
      later,
      [points[n]['added_per_second'] for n in later],
      marker='o',
      label=name,
    )
    memory.plot(
      counts, [points[n]['peak_bytes'] / 1e6 for n in counts], marker='o'
    )
  for axes, label in (
    (speed, 'further images/s'),
    (memory, 'peak memory, MB'),
  ):
    axes.set(xscale='log', xlabel='images', ylabel=label, ylim=(0, None))
    axes.grid(alpha=0.3)
  figure.legend(loc='upper center', fontsize=7)
  figure.tight_layout(rect=(0, 0, 1, 0.9))
  target.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(target, metadata={'Date': None})


def measured(given: argparse.Namespace) -> Iterator[Line]:
  """The lines of the requested measurement."""
  data, settings = pathlib.Path(given.data), tuple(given.settings)
  if given.what == 'decode':
    items = sources.open_source(str(data)).items
    images: list[Any] = [item.read() for item in items]
    yield from decode_of_a_core(images)
    yield from decode_differences(images)
    times = -(-given.count // len(images))
    yield from decode_together(images * times)
  elif given.what == 'end_to_end':
    yield end_to_end(data, given.count, *settings)
  elif given.what == 'batch_sizes':
    yield from batch_sizes(given.counts, given.count, *settings)
  elif given.what == 'start':
    yield start(data, *settings, against=given.against)
  elif given.what == 'growth':
    yield from growth(data, given.counts, *settings)
  else:
    yield from layers(data, given.count, *settings)


def main() -> None:
  """Measures, and appends the lines."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    'what',
    choices=MEASUREMENTS,
  )
  parser.add_argument('--data', default='example', help='images')
  parser.add_argument('--count', type=int, default=400, help='images')
  parser.add_argument(
    '--against', default='', help='start: another checkout to measure beside'
  )
  parser.add_argument(
    '--counts', type=int, nargs='+', default=[100, 400, 1600, 6400, 20000]
  )
  parser.add_argument(
    '--settings',
    nargs='*',
    default=['layer_num=50', 'weights=random'],
    help='settings of the program, KEY=VALUE',
  )
  parser.add_argument('--note', default='', help='stored in every line')
  parser.add_argument('--out', default=RESULTS, type=pathlib.Path)
  given = parser.parse_args()
  if given.what == 'plot':
    plot(given.out)
    return
  facts = machine()
  given.out.parent.mkdir(parents=True, exist_ok=True)
  for line in measured(given):
    print(json.dumps(line), file=sys.stderr)
    keep(given.out, line | facts | {'note': given.note})


if __name__ == '__main__':
  main()
