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


def get_config(arg: str = '') -> ConfigDict:
  """The settings, with those in `arg` ('152,weights=random') changed."""
  config = ConfigDict()

  # The network's depth: 18, 34, 50, 101 or 152; 0: that of the weights' file,
  # else 50.
  config.layer_num = 0
  # A file or directory in any known format; a checkpoint of the zoo (msra,
  # paddle, keras, torchvision.v1, torchvision.v2, timm.a1_in1k; --job=zoo lists
  # them); 'auto': model/resnet_<layer_num>, else the zoo's usual one; 'random':
  # untrained, to try the program.  download: also 'all', or several.
  config.weights = 'auto'
  # How convolutions lie in a Paddle directory: 'OHWI', (Co, ky, kx, Ci), or
  # 'OIHW', (Co, Ci, ky, kx).
  config.conv_order = 'OHWI'
  # For weights=random.
  config.seed = 0
  # A file with a class name a line, for weights of other classes than
  # ImageNet's; or 'cifar10'.
  config.class_names = ''
  # The network's variant; 'auto' and 0: the weights' own.  stride_in: '1x1' or
  # '3x3'; stem_pool: 'ceil' or 'pad1'.
  config.stride_in = 'auto'
  config.stem_pool = 'auto'
  config.epsilon = 0.0

  # The images: a list file (a line an image: path, label), a folder, one
  # image, a tar archive (uncompressed, read in place), shards (a folder of
  # .tar files or 'val-{000..049}.tar') or Parquet files.
  config.data = 'example/test.list'
  # What to do with an image that cannot be read: 'fail', or 'record' it as
  # failed and go on.
  config.on_error = 'fail'
  # Ten crops (four corners, centre, mirrored), averaged, instead of one.
  config.multi_crop = False
  # From here on 'auto' and 0 mean: as the weights' publisher did.
  # 'short_side': the shorter side to resize_size, then crops; 'squash': the
  # whole image to crop_size, whatever its shape (the original demo's);
  # 'none': images of crop_size as they are.
  config.resize = 'auto'
  config.resize_size = 0
  config.crop_size = 0
  # 'lanczos', 'bilinear' or 'bicubic'.
  config.interpolation = 'auto'
  # How the longer side and a crop's offsets become whole: 'nearest', the
  # original's, or 'torchvision'.
  config.rounding = 'auto'
  # 'BGR' or 'RGB': the order of mean, std and the network's input.
  config.channels = 'auto'
  # What is subtracted, on the scale 0 to 255: three values, or a mean file, BGR
  # (npz or pickle with data_mean, or Caffe's binaryproto).
  config.mean = 'auto'
  # What is divided by: three values on the same scale.
  config.std = 'auto'

  # 'exact', or 'scaled': faster, but other pixels; a run says how far its first
  # images are off.
  config.decode = 'exact'

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

  # predict, evaluate: the file of predictions (JSON lines); '': predict
  # writes none, evaluate RESULTS/predictions.jsonl.
  config.predictions = ''

  # evaluate: the labels: '', those that the data itself states; 'folders', the
  # names of the folders; or a file.  Several, with commas, in one pass.
  config.labels = ''
  # evaluate: the folder for results.json and predictions.jsonl.
  config.results = 'results'
  # evaluate: a file that a line (JSON) with the result is added to; '': none.
  config.record = ''
  # evaluate: whose published error is compared with, such as msra-50; '': the
  # checkpoint that the weights are recognised as.
  config.checkpoint = ''

  # visualize: the folder for report.html and the PNG files.
  config.report = 'report'
  # visualize: layers whose maps are shown, by names and globs with commas
  # between them; '': the stem's and each stage's last.
  config.map_layers = ''
  # visualize: maps of a layer, the strongest, 1 to 64.
  config.map_count = 16
  # visualize: the layer that Grad-CAM is of; '': the last block's output.
  config.cam_layer = ''
  # visualize: the class that Grad-CAM is for: an index, a WordNet id, or
  # 'predicted', each image's own.
  config.cam_class = 'predicted'

  # compare: two files of predictions, or two feature stores.
  config.first = ''
  config.second = ''

  # convert: the file or directory to write, and its format: 'safetensors' or
  # 'paddle' (a directory).  diagram: a file, whose suffix says what is drawn:
  # .dot, or with graphviz .svg, .png or .pdf; '': .dot, to standard output.
  config.output = ''
  config.convert_to = 'safetensors'
  # inspect: parameters whose values are printed, by names and globs; '': the
  # table of all.
  config.parameter = ''
  # diagram: a box for each of the 'layers', 'blocks' or 'stages'.
  config.diagram_level = 'blocks'
  # diagram: a layer; what is not computed for it becomes pale.
  config.highlight = ''
  # zoo, inspect, summary, evaluate, compare: JSON instead of a table.
  config.as_json = False

  # Require a GPU: an error if there is none.  Otherwise JAX's default device.
  config.use_gpu = False
  # How numbers are multiplied: 'float32', in full; 'direct', the same without
  # Winograd's algorithm for 3x3 convolutions (a CPU's only); 'tf32' or
  # 'bfloat16', faster on a GPU, but fewer digits.
  config.arithmetic = 'float32'
  # Crops that go through the network at once (a tenth as many images with
  # multi_crop); fewer where their features would be large.  0 or 'auto': as
  # many as are fast and fit into the memory.
  config.batch_size = 0
  # Threads that decode images; 0: one a core.
  config.threads = 0
  # Keep compiled programs for the next run, in the user's cache folder.
  config.compilation_cache = True

  return configuration.apply(config, arg)
