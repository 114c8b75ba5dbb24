# SPDX-License-Identifier: Apache-2.0
"""Every setting of the jobs.

  python -m resnet_jax.main --config=configs/resnet.py:50 --job=extract
  python -m resnet_jax.main --config=configs/resnet.py:152,weights=random \
      --job=predict --config.multi_crop=true --config.data=photos

A depth, or a network's name such as resnext50_32x4d, and settings, separated by
commas, follow the colon.  A flag sets any key, too: `--config.KEY=VALUE`, which
a value with a comma needs.
"""

from ml_collections import ConfigDict

from resnet_jax import configuration


def get_config(arg: str = '') -> ConfigDict:
  """The settings, overridden by `arg`, such as '152,weights=random'."""
  config = ConfigDict()

  # The network's depth: 18, 34, 50, 101 or 152; 0: from the weights, else 50.
  config.layer_num = 0
  # A file or directory in any known format; a checkpoint of the zoo (msra,
  # paddle, keras, torchvision.v1, torchvision.v2, timm.a1_in1k, ...; --job=zoo
  # lists them); 'auto': model/resnet_<layer_num>, else the zoo's default;
  # 'random': untrained, for trying the program.  download: also several, or
  # 'all'.
  config.weights = 'auto'
  # Of a PyTorch or safetensors file with several networks: the prefix of the
  # names of one, such as 'encoder_q'; '': there is one.
  config.weights_prefix = ''
  # Layout of convolutions in a Paddle directory: 'OHWI', (Co, ky, kx, Ci), or
  # 'OIHW', (Co, Ci, ky, kx).
  config.conv_order = 'OHWI'
  # Seed of weights=random.
  config.seed = 0
  # A file with one class name per line, for weights of classes other than
  # ImageNet's; or 'cifar10'.
  config.class_names = ''
  # The network's variant; 'auto' and 0: from the weights.
  # The convolution of a bottleneck block with the stage's stride: '1x1' or
  # '3x3'.
  config.stride_in = 'auto'
  # The padding of the stem's pool: 'ceil' or 'pad1'.
  config.stem_pool = 'auto'
  # What batch norms add to the variance.
  config.epsilon = 0.0
  # Channels of the stem, and of res2's blocks over 4; 0: those of the weights,
  # else the usual 64 (for CIFAR 16).
  config.stem_width = 0
  config.width = 0
  # Channels of the 3x3 convolutions of res2's bottleneck blocks, and their
  # groups: 128 is a wide ResNet-50-2, 128 in 32 groups a ResNeXt-50 of 32x4d.
  config.inner_width = 0
  config.groups = 0

  # The images: a list file (path and label, one image per line), a folder, an
  # image, a tar archive (uncompressed, read in place), shards (a folder of
  # .tar files or 'val-{000..049}.tar'), Parquet files, or crops (--job=crop).
  # All but crops also at an address: s3://, gs://, hf:// or https://.
  config.data = 'example/test.list'
  # An image that cannot be read: 'fail' ends the run, 'record' marks it as
  # failed and continues.
  config.on_error = 'fail'
  # Average over ten crops (four corners, centre, mirrored) instead of one.
  config.multi_crop = False
  # Preprocessing: 'auto' and 0 stand for that of the weights' publisher.
  # 'short_side': the shorter side to resize_size, then crops; 'squash': the
  # whole image to crop_size, whatever its shape (as the original demo did);
  # 'none': images that already have crop_size.
  config.resize = 'auto'
  config.resize_size = 0
  config.crop_size = 0
  # 'lanczos', 'bilinear' or 'bicubic'.
  config.interpolation = 'auto'
  # How the longer side and the crop's offsets are rounded: 'nearest' (the
  # original's) or 'torchvision'.
  config.rounding = 'auto'
  # Channel order of mean, std and the network's input: 'BGR' or 'RGB'.
  config.channels = 'auto'
  # Subtracted, on the scale 0 to 255: three values, or a mean file, BGR (npz or
  # pickle with data_mean, or Caffe's binaryproto).
  config.mean = 'auto'
  # What the input is divided by: three values on the same scale.
  config.std = 'auto'

  # 'exact', or 'scaled': faster but other pixels; a run reports the difference
  # on its first images.
  config.decode = 'exact'

  # extract: layers, by names and globs, separated by commas.
  config.output_layer = 'avgpool'
  # extract, status: the folder for the features.
  config.output_dir = 'features'
  # extract: 'zarr', or the original's 'pickle' (batch_0, ...) or 'text'
  # (rank-00000).
  config.feature_format = 'zarr'
  # extract: 'none' (full maps), or 'avg' or 'max' over all positions.
  config.pool = 'none'
  # extract: 'float32' or 'float16'.
  config.dtype = 'float32'

  # extract, crop: the part of the work that this process does, of a run that
  # several processes share: 'i/n', such as 0/16 to 15/16; 'auto': from SLURM's
  # variables, else JAX's processes; '': all.
  config.part = ''

  # status: read all rows of output_dir, and compare them with their digests.
  config.verify = False

  # crop: the folder for the crops, which data= takes.
  config.crops = 'crops.zarr'

  # predict, evaluate: the file of predictions (JSON lines); '': predict
  # writes none, evaluate RESULTS/predictions.jsonl.
  config.predictions = ''

  # evaluate: the labels: '' (those that the data states), 'folders' (the names
  # of the folders), or a file.  Several, separated by commas, in one pass.
  config.labels = ''
  # evaluate: the folder for results.json and predictions.jsonl.
  config.results = 'results'
  # evaluate: a JSON Lines file to which the result is appended; '': none.
  config.record = ''
  # evaluate: the checkpoint whose published error is compared, such as msra-50;
  # '': the checkpoint that the weights are recognised as.
  config.checkpoint = ''

  # visualize: the folder for report.html and the PNG files.
  config.report = 'report'
  # visualize: layers whose maps are shown, by names and globs, separated by
  # commas; '': the last layer of the stem and of each stage.
  config.map_layers = ''
  # visualize: maps per layer, the strongest ones, 1 to 64.
  config.map_count = 16
  # visualize: the layer of Grad-CAM; '': the last block's output.
  config.cam_layer = ''
  # visualize: the class of Grad-CAM: an index, a WordNet id, or 'predicted',
  # each image's predicted class.
  config.cam_class = 'predicted'

  # compare: two prediction files, evaluate folders, or feature stores.
  config.first = ''
  config.second = ''

  # convert: the file or directory to write, and its format: 'safetensors', or
  # 'paddle' or 'orbax' (a directory).  diagram: a file, whose suffix chooses
  # the format: .dot, or with Graphviz .svg, .png or .pdf; '': .dot on standard
  # output.
  config.output = ''
  config.convert_to = 'safetensors'
  # inspect: parameters whose values are printed, by names and globs; '': the
  # table of all parameters.
  config.parameter = ''
  # diagram: one box per layer, block or stage: 'layers', 'blocks', 'stages'.
  config.diagram_level = 'blocks'
  # diagram: a layer; everything that it does not need is pale.
  config.highlight = ''
  # zoo, inspect, summary, evaluate, compare: JSON instead of a table.
  config.as_json = False

  # Require a GPU; otherwise use JAX's default device.
  config.use_gpu = False
  # Precision of multiplications: 'float32', full; 'direct', full, without
  # Winograd's algorithm for 3x3 convolutions (used on a CPU only); 'tf32' or
  # 'bfloat16', faster on a GPU, with fewer digits.
  config.arithmetic = 'float32'
  # Crops per forward pass (a tenth as many images with multi_crop); fewer if
  # their features would be large.  0 or 'auto': chosen for speed and memory.
  config.batch_size = 0
  # Decoding threads; 0 or 'auto': one per core.
  config.threads = 0
  # Keep compiled programs between runs, in the user's cache folder.
  config.compilation_cache = True

  return configuration.apply(config, arg)
