#!/usr/bin/env bash
# What a change of the network, of nn/fast or of Colorizer needs to see on an NVIDIA GPU, in some
# five minutes: every test that needs CUDA, then the three speed bars of docs/performance.md.
#
#     bash benchmarks/on_gpu.sh                        # tests, networks, one frame
#     DATA=pairs PRETRAINED=weights bash benchmarks/on_gpu.sh       # and a training step
#
# The exit status is that of the tests.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python3 -m pytest -q -n 8 -p no:cacheprovider tests/nn tests/thermal/test_cuda_frames.py \
  tests/colorizer/test_tensor_frames.py tests/weights/test_bundled.py
status=$?
python3 benchmarks/network.py --networks cmmfnet-paper cmmfnet pix2pix
python3 benchmarks/network.py --frame
if [ -n "${DATA:-}" ]; then
  python3 benchmarks/step.py --data "$DATA" --pretrained "${PRETRAINED:-}"
fi
exit $status
