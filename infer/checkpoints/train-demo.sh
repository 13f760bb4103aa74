#!/bin/bash
# Make the bundled checkpoint again: simulate seasons, read the real one, train. From the checkout's root:
#
#   bash infer/checkpoints/train-demo.sh FLANDERS WORK
#
# FLANDERS: the folder of the real season (items.json, region.geojson); WORK: where everything goes (about 1 GB).
# It can be stopped and started again. It takes ten to thirty minutes on one core; the result is WORK/student/student.pt.
set -euo pipefail
flanders=$(realpath "${1:?the folder of the real season}") work=${2:?a folder to work in}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1
mkdir -p "$work/flanders"

"$python" -m preproc.simulate.seasons "$work/seasons" --count 128 --size 48 --seed 1

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
size = 256
TOML
fi
"$python" -m preproc.cli plan "$work/flanders"
"$python" -m preproc.cli fetch "$work/flanders"

"$python" -m infer.pretrain "$work/student" --threads 1 --device cpu \
    --tiles "$work/seasons" --weight 0.7 --tiles "$work/flanders/tiles" --weight 0.3 \
    --steps 1200 --reach 2 --noise 1.7 --longest 24 --monthly-weight 0 --twins-weight 1 --direct-redundancy 0.005 --seed 1 \
    --label "smalti demonstration model (small, trained on simulated seasons and one square of Flanders; not TESSERA)"
