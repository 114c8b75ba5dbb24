# SPDX-License-Identifier: Apache-2.0
"""A contender of the benchmark, in a process of its own.

  python experiments/peers.py NAME DEPTH ARITHMETIC

benchmark.py starts it.  It prints a JSON line with its versions and device.
For each input line, `BATCH SECONDS`, it computes batches of random numbers for
that time and prints a JSON line with the rate, the cores that it used, and the
settings.  The first use of a batch size does not count.  Other programs'
networks are unmodified, with random weights, in evaluation mode; ours computes
`avgpool`, theirs the logits.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SIZE = 224


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one batch size.

  Attributes:
    run: computes batches, and waits for the results.
    amount: what a call counts for: images, or what a bound counts.
    settings: that the program was given, or chose.
  """

  run: Callable[[], Any]
  amount: int
  settings: str = ''


# Makes the work of a batch size.
Contender = Callable[[int], Work]


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def _images(batch: int) -> np.ndarray:
  random = np.random.default_rng(0)
  return random.standard_normal((batch, 3, SIZE, SIZE), np.float32)


# ----------------------------------------------------------------------- ours


def _ours(depth: int, arithmetic: str) -> Contender:
  from resnet_jax.data.preprocess import Preprocess  # noqa: PLC0415
  from resnet_jax.engine import devices, runner  # noqa: PLC0415
  from resnet_jax.models import resnet  # noqa: PLC0415
  from resnet_jax.weights import random  # noqa: PLC0415

  devices.use_cores()
  model = resnet.ResNet(depth)
  run = runner.Runner(
    model,
    random.initialise(model, 0),
    ['avgpool'],
    Preprocess((0.0, 0.0, 0.0)),
    execution=runner.Execution(devices.select(False), arithmetic),
  )

  def prepared(batch: int) -> Work:
    images = np.random.default_rng(0).integers(
      0, 256, (batch, 1, SIZE, SIZE, 3), np.uint8
    )
    return Work(run.repeated(images), batch, f'{_cores()} devices')

  return prepared


def _plain_flax(depth: int, arithmetic: str) -> Contender:
  """Our modules as defined: nothing folded, XLA's convolutions."""
  import jax  # noqa: PLC0415

  from resnet_jax.models import resnet  # noqa: PLC0415
  from resnet_jax.weights import random  # noqa: PLC0415

  if arithmetic != 'float32':
    raise NotSupported
  model = resnet.ResNet(depth)
  parameters = jax.device_put(random.initialise(model, 0))
  forward = jax.jit(
    lambda p, x: resnet.capture(model, p, x, ['avgpool'])['avgpool']
  )

  def prepared(batch: int) -> Work:
    x = jax.device_put(_images(batch).transpose(0, 2, 3, 1))
    return Work(lambda: forward(parameters, x).block_until_ready(), batch)

  return prepared


# --------------------------------------------------------------------- theirs


class NotSupported(Exception):
  """The contender lacks an arithmetic."""


def _torch(
  depth: int, arithmetic: str, *, library: str, compiled: bool
) -> Contender:
  import torch  # noqa: PLC0415

  cuda = torch.cuda.is_available()
  if arithmetic == 'tf32' and not cuda:
    raise NotSupported
  torch.backends.cuda.matmul.allow_tf32 = arithmetic == 'tf32'
  torch.backends.cudnn.allow_tf32 = arithmetic == 'tf32'
  torch.backends.cudnn.benchmark = True
  device = 'cuda' if cuda else 'cpu'
  dtype = torch.bfloat16 if arithmetic == 'bfloat16' else torch.float32
  if library == 'torchvision':
    make = getattr(
      importlib.import_module('torchvision.models'), f'resnet{depth}'
    )
    model = make(weights=None)
  else:
    model = importlib.import_module('timm').create_model(f'resnet{depth}')
  model = model.eval().to(device, dtype, memory_format=torch.channels_last)
  if compiled:
    model = torch.compile(model, mode='max-autotune' if cuda else 'default')

  def prepared(batch: int) -> Work:
    x = torch.from_numpy(_images(batch)).to(
      device, dtype, memory_format=torch.channels_last
    )

    def work() -> None:
      with torch.inference_mode():
        model(x)
      if cuda:
        torch.cuda.synchronize()

    return Work(work, batch, f'{torch.get_num_threads()} threads')

  return prepared


@contextlib.contextmanager
def _exported(depth: int, *, features: bool = False) -> Iterator[str]:
  """The path of torchvision's network as ONNX, with the input `x`."""
  import torch  # noqa: PLC0415
  import torchvision  # noqa: PLC0415

  model = getattr(torchvision.models, f'resnet{depth}')(weights=None).eval()
  if features:
    model.fc = torch.nn.Identity()
  with tempfile.TemporaryDirectory() as folder:
    path = f'{folder}/model.onnx'
    torch.onnx.export(
      model,
      (torch.zeros(1, 3, SIZE, SIZE),),
      path,
      input_names=['x'],
      dynamic_axes={'x': {0: 'batch'}},
      dynamo=False,
    )
    yield path


def exported(depth: int, *, features: bool = False) -> Any:
  """Torchvision's network as an ONNX Runtime session with the input `x`.

  Args:
    depth: the network's depth.
    features: whether the network ends before the classifier.
  """
  import onnxruntime  # noqa: PLC0415

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = _cores()
  with _exported(depth, features=features) as path:
    return onnxruntime.InferenceSession(
      path, options, providers=onnxruntime.get_available_providers()
    )


def _onnxruntime(depth: int, arithmetic: str) -> Contender:
  """Torchvision's network, exported; ONNX Runtime folds and fuses."""
  if arithmetic != 'float32':
    raise NotSupported
  session = exported(depth)

  def prepared(batch: int) -> Work:
    x = _images(batch)
    settings = f'{_cores()} threads'
    return Work(lambda: session.run(None, {'x': x}), batch, settings)

  return prepared


def _openvino(depth: int, arithmetic: str) -> Contender:
  """The same file; one image for latency, batches for throughput."""
  import openvino  # noqa: PLC0415

  if arithmetic != 'float32':
    raise NotSupported
  core = openvino.Core()
  with _exported(depth) as path:
    model = core.read_model(path)

  def prepared(batch: int) -> Work:
    hint = 'LATENCY' if batch == 1 else 'THROUGHPUT'
    model.reshape([batch, 3, SIZE, SIZE])
    compiled = core.compile_model(
      model,
      'CPU',
      {'PERFORMANCE_HINT': hint, 'INFERENCE_PRECISION_HINT': 'f32'},
    )
    x = _images(batch)
    # As many requests as it asks for; for latency one.
    queue = openvino.AsyncInferQueue(compiled)
    requests = 1 if batch == 1 else len(queue)

    def work() -> None:
      for _ in range(requests):
        queue.start_async({0: x})
      queue.wait_all()

    streams = compiled.get_property('NUM_STREAMS')
    threads = compiled.get_property('INFERENCE_NUM_THREADS')
    settings = f'{hint}, {streams} streams, {threads} threads'
    return Work(work, batch * requests, settings)

  return prepared


def _keras(depth: int, arithmetic: str) -> Contender:
  """keras.applications on its JAX backend."""
  os.environ['KERAS_BACKEND'] = 'jax'
  import jax  # noqa: PLC0415
  import keras  # noqa: PLC0415

  if arithmetic != 'float32':
    raise NotSupported
  model = getattr(keras.applications, f'ResNet{depth}')(weights=None)
  trained = [v.value for v in model.trainable_variables]
  fixed = [v.value for v in model.non_trainable_variables]
  forward = jax.jit(
    lambda t, f, x: model.stateless_call(t, f, x, training=False)[0]
  )

  def prepared(batch: int) -> Work:
    x = jax.device_put(_images(batch).transpose(0, 2, 3, 1))
    return Work(lambda: forward(trained, fixed, x).block_until_ready(), batch)

  return prepared


# ------------------------------------------------------------------ the bound


def _matrix_product(depth: int, arithmetic: str) -> Contender:
  """A large matrix product; its `images` are its multiply-adds."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  from resnet_jax.models import convolution  # noqa: PLC0415

  del depth
  rules = convolution.ARITHMETICS[arithmetic]
  accelerated = jax.default_backend() != 'cpu'
  side = 8192 if accelerated else 2048
  x = jnp.ones((side, side), rules.dtype)
  product = jax.jit(functools.partial(jnp.dot, precision=rules.precision))

  def prepared(batch: int) -> Work:
    del batch
    return Work(lambda: product(x, x).block_until_ready(), side**3)

  return prepared


def _copy(depth: int, arithmetic: str) -> Contender:
  """A large addition; its `images` are the bytes it reads and writes."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  del depth
  if arithmetic != 'float32':
    raise NotSupported
  count = 1 << 28
  x = jnp.ones((count,), jnp.float32)
  # In place: new memory would come from the system page by page.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def work() -> None:
    nonlocal x
    x = add(x).block_until_ready()

  def prepared(batch: int) -> Work:
    del batch
    return Work(work, 8 * count)

  return prepared


CONTENDERS: dict[str, Callable[[int, str], Contender]] = {
  'resnet_jax': _ours,
  'plain Flax': _plain_flax,
  'PyTorch eager': functools.partial(
    _torch, library='torchvision', compiled=False
  ),
  'torch.compile': functools.partial(
    _torch, library='torchvision', compiled=True
  ),
  'timm': functools.partial(_torch, library='timm', compiled=False),
  'ONNX Runtime': _onnxruntime,
  'OpenVINO': _openvino,
  'Keras (JAX)': _keras,
}
BOUNDS: dict[str, Callable[[int, str], Contender]] = {
  'matrix product': _matrix_product,
  'memory': _copy,
}
PACKAGES = {
  'resnet_jax': ('jax', 'jaxlib', 'flax'),
  'plain Flax': ('jax', 'jaxlib', 'flax'),
  'PyTorch eager': ('torch', 'torchvision'),
  'torch.compile': ('torch', 'torchvision'),
  'timm': ('torch', 'timm'),
  'ONNX Runtime': ('onnxruntime',),
  'OpenVINO': ('openvino',),
  'Keras (JAX)': ('keras', 'jax'),
  'matrix product': ('jax',),
  'memory': ('jax',),
}


def _device(name: str) -> str:
  if name in ('PyTorch eager', 'torch.compile', 'timm'):
    import torch  # noqa: PLC0415

    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
  if name == 'ONNX Runtime':
    import onnxruntime  # noqa: PLC0415

    return onnxruntime.get_device().lower()
  if name == 'OpenVINO':
    return 'cpu'
  import jax  # noqa: PLC0415

  from resnet_jax.engine import devices  # noqa: PLC0415

  return devices.describe(jax.local_devices())


def _serve(contender: Contender) -> None:
  works: dict[int, Work] = {}
  for line in sys.stdin:
    batch, seconds = int(line.split()[0]), float(line.split()[1])
    if batch not in works:
      works[batch] = contender(batch)
      for _ in range(2):
        works[batch].run()
    work, count = works[batch], 0
    begin, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
      work.run()
      count += 1
    taken = time.perf_counter() - begin
    answer = {
      'rate': count * work.amount / taken,
      'cores': (time.process_time() - used) / taken,
      'settings': work.settings,
    }
    print(json.dumps(answer), flush=True)


def main() -> None:
  """Serves one contender, or prints one line with the reason."""
  name, depth, arithmetic = sys.argv[1], int(sys.argv[2]), sys.argv[3]
  try:
    contender = (CONTENDERS | BOUNDS)[name](depth, arithmetic)
    ready = {
      'versions': {p: importlib.metadata.version(p) for p in PACKAGES[name]},
      'device': _device(name),
    }
  except ImportError as error:
    print(json.dumps({'missing': f'not installed: {error.name}'}), flush=True)
    return
  except NotSupported:
    print(json.dumps({'missing': f'no {arithmetic}'}), flush=True)
    return
  print(json.dumps(ready), flush=True)
  _serve(contender)


if __name__ == '__main__':
  main()
