#!/usr/bin/env bash
# From text to a classifier: a small network learns from film reviews without labels, is evaluated, and learns the
# sentiment of sentences (SST-2, Socher et al. 2013); beside it the same network learns that from random weights.
#
#     examples/sentiment.sh encoder text train.tsv dev.tsv runs/encoder     # or decoder, t5
#
# reviews.py makes the folder text; the tables are GLUE's, "sentence<TAB>label". README.md beside this file has the
# figures. Within an hour on one core; the same command goes on where it was stopped. More flags go to every training:
# --max_steps 3 for a rehearsal, --strategy ddp --devices 4, --precision bf16-mixed.
set -euo pipefail
family=$1 text=$2 train=$3 dev=$4 out=$5 more=("${@:6}")
tokenizer=bpe:8192 rows=(--seq_len 128 --batch_size 32)
shape=(num_hidden_layers=3 num_attention_heads=4 hidden_size=128 intermediate_size=256)
layers=("${shape[@]/#/--model.}")
begin=("${layers[@]}" --data.tokenizer $tokenizer)
task=(classification --data.text_field sentence --data.label_field label)

pretrain() { sslm train --data.train "$text/text.jsonl" --optim.lr 2e-3 --val_every 500 --objective "$@" "${more[@]}"; }

case $family in
  encoder) pretraining=(masked_lm --objective.ratio 0.3 --max_steps 5000) ;;
  decoder) pretraining=(causal_lm --max_steps 2500) layers+=(--model.model_type llama) ;;
  t5) # a decoder learns first, and both halves begin as that (T5Gemma, Zhang et al. 2025): far less text is enough
    tokenizer=bpe:4096
    shape+=(num_key_value_heads=4 head_dim=32 query_pre_attn_scalar=32)
    shape+=(attn_logit_softcapping=null final_logit_softcapping=null) # without them attention has fast kernels
    pretrain causal_lm --model.model_type gemma2 "${shape[@]/#/--model.}" --data.tokenizer $tokenizer "${rows[@]}" \
      --max_steps 2500 --run_dir "$out/decoder"
    [ -e "$out/halves" ] || python "$(dirname "$0")/encoder_decoder.py" "$out/decoder/export" "$out/halves"
    sizes=$(IFS=,; echo "${shape[*]/=/: }")
    layers=(--model.model_type t5gemma --model.encoder "{$sizes}"
      --model.decoder "{cross_attention_hidden_size: 128,$sizes}")
    rows=(--seq_len 64 --batch_size 32)
    begin=(--model.pretrained "$out/halves")
    pretraining=(span_corruption --objective.ratio 0.3 --optim.lr 1e-3 --optim.warmup_steps 100 --max_steps 2000)
    task=(text_to_text --data.source_field sentence --data.target_field label) ;;
  *) echo "sentiment.sh $family: expected encoder, decoder or t5" >&2; exit 2 ;;
esac

pretrain "${pretraining[@]}" "${begin[@]}" "${rows[@]}" --run_dir "$out/pretrained"
[ -e "$out/evaluated.json" ] || sslm evaluate "$out/pretrained" --data "$text/sentences.jsonl" --out "$out/evaluated.json"

labelled=("${task[@]}" --data.train "$train" --data.val "$dev" --seq_len 128 --batch_size 64 --max_epochs 1
  --optim.lr 5e-4 --anomaly.spike_z null --val_every 100 "${more[@]}") # gradients of random weights leap, and are clipped
sslm finetune --objective "${labelled[@]}" --model.pretrained "$out/pretrained" --run_dir "$out/finetuned"
sslm finetune --objective "${labelled[@]}" --data.tokenizer "$out/pretrained/export" "${layers[@]}" --run_dir "$out/from_scratch"
