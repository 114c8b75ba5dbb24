# SPDX-License-Identifier: Apache-2.0
"""Settings of a ResNet job; every key there is.

  python -m resnet_jax.main --config=configs/resnet.py:50 --job=extract
  python -m resnet_jax.main --config=configs/resnet.py:152,weights=random \
      --job=predict --config.multi_crop=true --config.data=photos

Behind the colon come a depth and settings with commas between them; any key
can also be set by a flag of its own, `--config.KEY=VALUE` (needed where the
value holds a comma).
"""

from ml_collections import ConfigDict

from resnet_jax import configuration


def get_config(arg: str = '50') -> ConfigDict:
  """The settings, with those in `arg` ('152,weights=random') changed."""
  config = ConfigDict()

  # The network's depth: 18, 34, 50, 101 or 152.
  config.layer_num = 50
  # A Paddle model directory; 'auto': model/resnet_<layer_num>; 'random':
  # untrained, to try the program.
  config.weights = 'auto'
  # How convolutions lie in a Paddle directory: 'OHWI', (Co, ky, kx, Ci), or
  # 'OIHW', (Co, Ci, ky, kx).
  config.conv_order = 'OHWI'
  # For weights=random.
  config.seed = 0

  # The pictures: a list file (a line a picture: path, label), a folder, or
  # one picture.
  config.data = 'example/test.list'
  # What to do with a picture that cannot be read: 'fail', or 'record' it as
  # failed and go on.
  config.on_error = 'fail'
  # Ten crops (four corners, centre, mirrored), averaged, instead of one.
  config.multi_crop = False
  # 'short_side': the shorter side to resize_size, then crops; 'squash': the
  # whole picture to crop_size, whatever its shape (the original demo's).
  config.resize = 'short_side'
  config.resize_size = 256
  config.crop_size = 224
  # 'lanczos', 'bilinear' or 'bicubic'.
  config.interpolation = 'lanczos'
  # What is subtracted: three values in BGR order, or a mean file (npz or
  # pickle with data_mean).
  config.mean = '103.939,116.779,123.68'

  # extract: layers, by names and globs with commas between them.
  config.output_layer = 'avgpool'
  # extract: where the features go.
  config.output_dir = 'features'
  # extract: 'zarr', or the original's 'pickle' (batch_0, ...) or 'text'
  # (rank-00000).
  config.feature_format = 'zarr'
  # extract: 'none', the full maps; 'avg' or 'max' over all positions.
  config.pool = 'none'
  # extract: 'float32' or 'float16'.
  config.dtype = 'float32'

  # predict: a file for one JSON object a picture; '': none.
  config.predictions = ''

  # Require a GPU: an error if there is none.  Otherwise JAX's default device.
  config.use_gpu = False
  # Crops that go through the network at once (a tenth as many pictures with
  # multi_crop); fewer where their features would be large.
  config.batch_size = 32
  # Threads that decode pictures; 0: one a core.
  config.threads = 0

  return configuration.apply(config, arg)
