#!/usr/bin/env bash
# Go on pretraining a public model on a text of yours, and measure it before and after on what was held out.
#
#     examples/continue.sh smollm2 train.txt held-out.txt runs/continued     # documents apart by a line of -----
#
# More flags go to the training. README.md beside this file has figures.
set -euo pipefail
model=$1 train=$2 held_out=$3 out=$4 more=("${@:5}")
separator='\n-----\n+'

sslm train --model.pretrained "$model" --data.train "$train" --data.val "$held_out" --data.document_separator "$separator" \
  --seq_len 128 --batch_size 4 --max_steps 40 --optim.lr 1e-4 --optim.warmup_steps 5 --val_every 20 --checkpoint.every_steps 40 \
  "${more[@]}" --run_dir "$out"
sslm evaluate "$model" "$out" --data "$held_out" --document_separator "$separator" --seq_len 128 --out "$out/evaluated.json"
