#!/usr/bin/env bash
# From text to a classifier: a small network learns from film reviews without labels, is evaluated, and learns the
# sentiment of sentences (SST-2, Socher et al. 2013); beside it the same network learns that from random weights.
#
#     examples/sentiment.sh encoder text train.tsv dev.tsv runs/encoder     # or decoder, t5
#
# reviews.py makes the folder text; the tables are GLUE's, "sentence<TAB>label". README.md beside this file has the
# figures. About an hour on one core; the same command goes on where it was stopped. More flags go to every training:
# --max_steps 3 for a rehearsal, --strategy ddp --devices 4, --precision bf16-mixed.
set -euo pipefail
family=$1 text=$2 train=$3 dev=$4 out=$5 more=("${@:6}")
layers=(--model.num_hidden_layers 3 --model.num_attention_heads 4 --model.hidden_size 128 --model.intermediate_size 256)
rows=(--seq_len 128 --batch_size 32)
task=(classification --data.text_field sentence --data.label_field label)
case $family in
  encoder) pretraining=(masked_lm --objective.ratio 0.3 --optim.lr 2e-3 --max_steps 5000) ;;
  decoder) pretraining=(causal_lm --optim.lr 2e-3 --max_steps 2500) ;;
  t5)
    sizes="num_attention_heads: 4, num_key_value_heads: 4, head_dim: 32, hidden_size: 128, intermediate_size: 256"
    layers=(--model.model_type t5gemma --model.encoder "{num_hidden_layers: 3, $sizes}"
      --model.decoder "{num_hidden_layers: 2, cross_attention_hidden_size: 128, $sizes}")
    rows=(--seq_len 20 --batch_size 64) # one span each: where there are many, it takes far longer to learn which is which
    pretraining=(span_corruption --optim.lr 8e-4 --optim.warmup_steps 200 --max_steps 12000)
    task=(text_to_text --data.source_field sentence --data.target_field label) ;;
  *) echo "sentiment.sh $family: expected encoder, decoder or t5" >&2; exit 2 ;;
esac

sslm train --objective "${pretraining[@]}" --data.train "$text/text.jsonl" --data.tokenizer bpe:8192 "${layers[@]}" \
  "${rows[@]}" --val_every 500 "${more[@]}" --run_dir "$out/pretrained"
[ -e "$out/evaluated.json" ] || sslm evaluate "$out/pretrained" --data "$text/sentences.jsonl" --out "$out/evaluated.json"

labelled=("${task[@]}" --data.train "$train" --data.val "$dev" --seq_len 128 --batch_size 64 --max_epochs 1
  --optim.lr 5e-4 --val_every 100 "${more[@]}")
sslm finetune --objective "${labelled[@]}" --model.pretrained "$out/pretrained" --run_dir "$out/finetuned"
sslm finetune --objective "${labelled[@]}" --data.tokenizer "$out/pretrained/export" "${layers[@]}" --run_dir "$out/from_scratch"
