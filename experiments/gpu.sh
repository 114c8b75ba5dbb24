#!/bin/sh
# Everything that is to be measured on a GPU, in one run of under 9 minutes.
#
#   sh experiments/gpu.sh
#   sh experiments/gpu.sh --data=photos --weights=torchvision.v2
#   sh experiments/gpu.sh --dry      # any machine: small sizes, nothing is kept
#
# PYTHON chooses the interpreter.  See experiments/gpu.py.
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" experiments/gpu.py "$@"
