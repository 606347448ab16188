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
  local run=$out/$1 config=$2 from=$3 steps mark
  shift 3
  mark="$config $* ${from:+$(cksum < "$from")}"
  [ "$(cat "$run/finished" 2> /dev/null)" = "$mark" ] && return
  cmmfnet train --config "$config" ${from:+--from "$from"} --data "$data" --pretrained "$weights" --out "$run" "$@"
  # a training that was stopped by a signal ends without an error, too
  steps=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' "$run/recipe.json")
  [ -e "$run/step-$steps.pt" ] || { echo "$run was stopped before step $steps; the same command goes on" >&2; exit 1; }
  echo "$mark" > "$run/finished"
}
made rendered || cmmfnet scenes "$data/rendered" --count 400 --seed 10000 --size 288,352
train base cmmfnet "" "$@"
train whole cmmfnet-whole "$out/base/model.safetensors" "$@"
train sharp cmmfnet-whole "$out/whole/model.safetensors" \
  --config.steps 450 --config.losses.adversarial 0.06 --config.options.adversarial_start 0.1 "$@"
made softened || cmmfnet soften "$data/softened" --pairs "$data/pairs" --teacher "$out/sharp/model.safetensors"
train softened cmmfnet-softened "$out/sharp/model.safetensors" "$@"
mean=$out/mean.safetensors
[ "$mean" -nt "$out/softened/finished" ] || python - "$out" "$mean" <<'END'
import sys

from cmmfnet.weights.files import load_model, save_model

sharp, softened = (load_model(f"{sys.argv[1]}/{name}/model.safetensors") for name in ("sharp", "softened"))
before = sharp.network.state_dict()
softened.network.load_state_dict({name: 0.4 * before[name] + 0.6 * x for name, x in softened.network.state_dict().items()})
save_model(sys.argv[2], softened.network, softened.config, softened.training)
END
made repainted || cmmfnet repaint "$data/repainted" --count 300 --seed 10000
made found || cmmfnet found-labels "$data/found" --pairs "$data/pairs" --model "$out/sharp/model.safetensors"
train text cmmfnet-text "$mean" "$@"
python - "$out" <<'END'
import sys

import torch

from cmmfnet.weights.files import load_model, save_model

trained = load_model(f"{sys.argv[1]}/text/model.safetensors")
with torch.no_grad():
    trained.network.attribute_vectors.mul_(1.5)  # colours weigh more (docs/text.md),
    for value in trained.network.regions.values:  # and so does all that words add
        value[-1].weight.mul_(1.2)
        value[-1].bias.mul_(1.2)
config = trained.config | trained.network.fold_text_projection()
save_model(f"{sys.argv[1]}/cmmfnet.safetensors", trained.network, config, trained.training, storage="int8")
END
