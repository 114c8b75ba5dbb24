# SPDX-License-Identifier: Apache-2.0
"""The script that a researcher would write: DataLoader, network, file.

  python experiments/loader.py 'PyTorch eager' IMAGES.list FOLDER

benchmark.py runs it.  Pillow decodes, resizes and crops, in one worker process
per core; pooled features of torchvision's ResNet-50 go to a .npy file.  Prints
the seconds that it took after the network was ready.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import peers
import pipeline_speed
import torch
import torchvision
from PIL import Image

from resnet_jax.system import cores

_BATCH = 32


class _Images(torch.utils.data.Dataset):
  def __init__(self, paths: list[str]) -> None:
    self._paths = paths

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> np.ndarray:
    image = Image.open(self._paths[index]).convert('RGB')
    crop = pipeline_speed.resized_then_cropped(image)
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def _network(name: str) -> Any:
  if name == 'ONNX Runtime':
    session = peers.exported(50, features=True)
    return lambda x: session.run(None, {'x': x.numpy()})[0]
  model = torchvision.models.resnet50(weights=None).eval()
  model.fc = torch.nn.Identity()
  model = model.to(memory_format=torch.channels_last)

  def run(x: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
      return model(x.contiguous(memory_format=torch.channels_last)).numpy()

  return run


def main() -> None:
  """Extracts features, and prints the time."""
  name, listed, folder = sys.argv[1:]
  paths = pathlib.Path(listed).read_text('utf-8').splitlines()
  network = _network(name)
  begin = time.perf_counter()
  loader = torch.utils.data.DataLoader(
    _Images(paths), batch_size=_BATCH, num_workers=cores.count()
  )
  file = np.lib.format.open_memmap(
    f'{folder}/features.npy', 'w+', np.float32, (len(paths), 2048)
  )
  done = 0
  for images in loader:
    file[done : done + len(images)] = network(images.float())
    done += len(images)
  file.flush()
  print(json.dumps({'seconds': time.perf_counter() - begin}))


if __name__ == '__main__':
  main()
