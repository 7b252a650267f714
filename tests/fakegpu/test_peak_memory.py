"""The plan's memory is the allocator's, at real sizes: no kernel runs and no weight is filled."""

import json
from pathlib import Path

import pytest

from tests.fakegpu.conftest import FakeGpus
from tests.support.runs import without_model

pytestmark = pytest.mark.slow

BATCH = "--batch_size 16 --micro_batch_size 8 --max_steps 50 --val_every 1000 --checkpoint.every_steps 1000"
"""With two micro-batches: in the second there are gradients beside all activations, which is what is planned for."""
STACK = (
    '"hidden_size":512,"intermediate_size":1024,"num_hidden_layers":4,"num_attention_heads":8,'
    '"num_key_value_heads":4,"head_dim":64'
)
FAMILIES = {
    "gpt2": "--model.model_type gpt2 --model.vocab_size 50304 --seq_len 1024",
    "llama": "--model.model_type llama --model.hidden_size 1024 --model.intermediate_size 2816 "
    "--model.num_hidden_layers 16 --model.num_attention_heads 16 --model.vocab_size 32000 --seq_len 1024",
    "bert": "--objective masked_lm --model.model_type bert --model.hidden_size 768 --model.intermediate_size 3072 "
    "--model.num_hidden_layers 12 --model.num_attention_heads 12 --model.vocab_size 30522 --seq_len 512",
    "modernbert": "--objective masked_lm --model.model_type modernbert --model.hidden_size 768 "
    "--model.intermediate_size 1152 --model.num_hidden_layers 22 --model.num_attention_heads 12 "
    "--model.vocab_size 50368 --seq_len 1024",
    "t5": "--objective span_corruption --model.model_type t5 --model.d_model 768 --model.d_kv 64 --model.d_ff 2048 "
    "--model.num_layers 12 --model.num_heads 12 --model.vocab_size 32128 --seq_len 512",
    "bart": "--objective denoising --model.model_type bart --model.d_model 768 --model.encoder_layers 6 "
    "--model.decoder_layers 6 --model.encoder_ffn_dim 3072 --model.decoder_ffn_dim 3072 "
    "--model.encoder_attention_heads 12 --model.decoder_attention_heads 12 --model.vocab_size 50265 --seq_len 512",
    "mixtral": "--model.model_type mixtral --model.hidden_size 512 --model.intermediate_size 1024 "
    "--model.num_hidden_layers 6 --model.num_attention_heads 8 --model.num_key_value_heads 4 "
    "--model.num_local_experts 8 --model.num_experts_per_tok 2 --model.vocab_size 32000 --seq_len 1024",
    "t5gemma": f"--objective span_corruption --model.model_type t5gemma --model.encoder {{{STACK}}} "
    f'--model.decoder {{{STACK},"is_decoder":true,"cross_attention_hidden_size":512}} '
    "--model.vocab_size 32000 --seq_len 512",
}
PRECISIONS = {
    "32": ("t5", "mixtral"),
    "bf16-mixed": ("gpt2", "llama", "bert", "modernbert", "bart"),
    "bf16-true": ("llama",),
    "32 --compile block": ("modernbert", "t5gemma"),
    "bf16-mixed --compile block": ("t5",),
}


@pytest.mark.parametrize(("family", "precision"), [(f, p) for p, families in PRECISIONS.items() for f in families])
def test_the_plan_is_the_allocators_peak_within_8_percent(
    family: str, precision: str, hollow_gpus: FakeGpus, tiny: list[str], tmp_path: Path
) -> None:
    where = "--accelerator gpu --devices 1 --strategy single --compile off"
    flags = f"{BATCH} {FAMILIES[family]} {where} --precision {precision}"
    out = tmp_path / "peak"
    verb = ("train_with_peak", str(out))
    done = hollow_gpus.train(tmp_path / "run", [*without_model(tiny), *flags.split()], verb=verb)
    assert done.code == 0, done.said
    found = json.loads(Path(f"{out}.0").read_text())
    parts = {name: f"{size / 2**30:.2f}" for name, size in found["planned"].items()}
    assert sum(found["planned"].values()) == pytest.approx(found["peak"], rel=0.08), (parts, found["peak"] / 2**30)
