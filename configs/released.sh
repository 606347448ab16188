#!/usr/bin/env bash
# The released model `cmmfnet` from nothing (docs/training.md): all its trainings, one after the other. What is there already is kept,
# and a training that was stopped goes on.
#
#   bash configs/released.sh DATA WEIGHTS OUT [--config.KEY VALUE ...]
#
# DATA has pairs/ and labelled-photos/, WEIGHTS the loss networks. The result is OUT/cmmfnet.safetensors. Further options go to every
# training (such as --config.steps 2 for a trial).
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
made() { [ -e "$data/$1/index.jsonl" ]; }
train() {  # NAME CONFIG FROM [option ...]
  local name=$1 config=$2 from=$3
  shift 3
  cmmfnet train --config "$config" ${from:+--from "$from"} --data "$data" --pretrained "$weights" --out "$out/$name" "$@"
}
made rendered || cmmfnet scenes "$data/rendered" --count 400 --seed 10000 --size 288,352
train base cmmfnet "" "$@"
train whole cmmfnet-whole "$out/base/model.safetensors" "$@"
train sharp cmmfnet-whole "$out/whole/model.safetensors" \
  --config.steps 450 --config.losses.adversarial 0.06 --config.options.adversarial_start 0.1 "$@"
for seed in 1 2 3; do
  train "mean-$seed" cmmfnet-mean "$out/sharp/model.safetensors" --config.seed "$seed" "$@"
done
python - "$out" <<'END'
import sys

from cmmfnet.weights.files import load_model, save_model

start = load_model(f"{sys.argv[1]}/sharp/model.safetensors")
others = [load_model(f"{sys.argv[1]}/mean-{seed}/model.safetensors") for seed in (1, 2, 3)]
for name, value in start.network.state_dict().items():
    if value.is_floating_point():  # .52 of the start, .16 of each training
        value.mul_(0.52)
        for other in others:
            value.add_(other.network.state_dict()[name], alpha=0.16)
save_model(f"{sys.argv[1]}/mean.safetensors", start.network, start.config, start.training)
END
made repainted || cmmfnet repaint "$data/repainted" --count 300 --seed 10000
made found || cmmfnet found-labels "$data/found" --pairs "$data/pairs" --model "$out/mean.safetensors"
train text cmmfnet-text "$out/mean.safetensors" "$@"
python - "$out" <<'END'
import sys

import torch

from cmmfnet.weights.files import load_model, save_model

trained = load_model(f"{sys.argv[1]}/text/model.safetensors")
with torch.no_grad():
    trained.network.attribute_vectors.mul_(1.5)  # colours weigh more (docs/text.md)
config = trained.config | trained.network.fold_text_projection()
save_model(f"{sys.argv[1]}/cmmfnet.safetensors", trained.network, config, trained.training, storage="int8")
END
