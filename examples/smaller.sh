#!/usr/bin/env bash
# From a classifier to one of a tenth of its bytes: a network is fine-tuned on the sentiment of sentences (SST-2, Socher
# et al. 2013) and teaches one of half its layers, which then loses 2 of each 4 weights and is written with 8 bits.
# Beside it, the network of half the layers learns alone, from random weights.
#
#     examples/smaller.sh encoder text train.tsv dev.tsv runs/smaller      # or decoder
#
# Each training ends with its last model: the best on dev would be chosen by the very sentences that it is measured on.
# Text and tables are those of sentiment.sh. README.md beside this file has the figures. Within an hour on one core; the
# same command goes on where it was stopped. More flags go to every training: --max_steps 3 for a rehearsal.
set -euo pipefail
family=$1 text=$2 train=$3 dev=$4 out=$5 more=("${@:6}")
shape=(--model.num_attention_heads 4 --model.hidden_size 128 --model.intermediate_size 256)

case $family in
  encoder) pretraining=(masked_lm --objective.ratio 0.3 --max_steps 3000) ;;
  decoder) pretraining=(causal_lm --max_steps 1200) shape+=(--model.model_type llama) ;;
  *) echo "smaller.sh $family: expected encoder or decoder" >&2; exit 2 ;;
esac

finetune() {
  sslm finetune --objective classification --data.text_field sentence --data.label_field label --data.train "$train" \
    --data.val "$dev" --seq_len 64 --batch_size 64 --max_epochs 1 --optim.lr 5e-4 --anomaly.spike_z null \
    --val_every 200 --checkpoint.export last "$@" "${more[@]}"
}

sslm train --objective "${pretraining[@]}" --data.train "$text/text.jsonl" --data.tokenizer bpe:8192 "${shape[@]}" \
  --model.num_hidden_layers 4 --seq_len 64 --batch_size 32 --optim.lr 2e-3 --val_every 500 --run_dir "$out/pretrained" \
  "${more[@]}"
finetune --model.pretrained "$out/pretrained" --run_dir "$out/teacher"

taught=(--distill.teacher "$out/teacher" --distill.weight 0.9 --distill.temperature 2)
finetune "${taught[@]}" --distill.from_layers 'every 2' --run_dir "$out/student"
finetune --data.tokenizer "$out/pretrained/export" "${shape[@]}" --model.num_hidden_layers 2 --run_dir "$out/alone"

finetune "${taught[@]}" --model.pretrained "$out/student" --prune.pattern 2:4 --optim.lr 2e-4 --run_dir "$out/sparse"
[ -e "$out/small" ] || sslm compress "$out/sparse" --quantize int8 --embeddings --at_most_loss 0.01 --out "$out/small"
