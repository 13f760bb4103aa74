#!/bin/bash
# Make the bundled checkpoint again: simulate seasons, read the real one, train. From the checkout's root:
#
#   bash infer/checkpoints/train-demo.sh FLANDERS WORK
#
# FLANDERS: the folder of the real season (items.json, region.geojson); WORK: where everything goes (about 4 GB).
# It can be stopped and started again; the result is WORK/demo.pt. Training takes some minutes on a GPU (seasons some
# minutes on one core), some hours on one core alone. DEVICE=cpu or cuda chooses.
set -euo pipefail
flanders=$(realpath "${1:?the folder of the real season}") work=${2:?a folder to work in}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
mkdir -p "$work/flanders"

"$python" -m preproc.simulate.seasons "$work/seasons" --count 768 --size 48 --seed 1

if [ ! -e "$work/flanders/run.toml" ]; then
    cat >"$work/flanders/run.toml" <<TOML
[region]
geometry = "$flanders/region.geojson"
start = "2018-12-01"
end = "2019-11-30"
[archive]
source = "static"
href = "$flanders/items.json"
[tiles]
size = 64
TOML
fi
"$python" -m preproc.cli plan "$work/flanders"
"$python" -m preproc.cli fetch "$work/flanders"

"$python" -m infer.pretrain "$work/student" --threads 1 --device "${DEVICE:-auto}" \
    --tiles "$work/seasons" --weight 0.8 --tiles "$work/flanders/tiles" --weight 0.2 \
    --latent-dim 24 --dim-feedforward 192 --steps 4153 --batch 1024 --groups 8 --longest 40 --warmup 300 --ema 0.999 \
    --noise 1.0 --monthly-power 0.4 --twins-weight 0.1 --offset-weight 1 --seed 1 \
    --label "smalti demonstration model (small, trained on simulated seasons and one square of Flanders; not TESSERA)"
"$python" -m infer.pretrain.turn_back "$work/student/student.pt" "$work/demo.pt"
