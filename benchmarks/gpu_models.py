"""What `gpu.py` trains: flags of small runs, and models of real size."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SMALL = "--data.tokenizer bpe:512 --optim.warmup_steps 2 --log_every 1 --checkpoint.every_steps 1000 --devices 1"
SHORT = (
    f"{SMALL} --compile off --seq_len 64 --batch_size 8 --micro_batch_size 4 --data.val_sequences 8 --val_every 1000"
)
NARROW = (
    "--model.hidden_size 64 --model.intermediate_size 128 --model.num_hidden_layers 2 --model.num_attention_heads 2"
)
OBJECTIVES = {
    "causal_lm": NARROW,
    "causal_lm, LSTM": "--model.model_type sslm_lstm --model.hidden_size 64",
    "causal_lm, document masks": f"{NARROW} --data.packing best_fit --data.document_mask true",
    "masked_lm": f"--objective masked_lm {NARROW}",
    "span_corruption": "--objective span_corruption --model.dropout_rate 0 --model.d_model 64 --model.d_kv 32 "
    "--model.d_ff 128 --model.num_layers 2 --model.num_heads 2",
    "denoising": "--objective denoising --model.dropout 0 --model.d_model 64 --model.encoder_layers 2 "
    "--model.decoder_layers 2 --model.encoder_ffn_dim 128 --model.decoder_ffn_dim 128 "
    "--model.encoder_attention_heads 2 --model.decoder_attention_heads 2",
    "token_order": f"--objective token_order {NARROW}",
}
DTYPES = {
    "32": "float32",
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
    "16-mixed": "float16",
    "fp8": "float8_e4m3fn",
}
STRATEGIES = ("single", "ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
NO_LOSS_SCALING = ("fsdp",)
"""Strategies that refuse 16-mixed."""


@dataclass(frozen=True)
class Sizes:
    """Models and lengths of the parts that need real ones."""

    gpt2: str
    llama: str
    families: dict[str, str]
    attention: tuple[int, int, int, int]
    """Batch, heads, length and width of a head, of attention beside dense masks."""
    num_steps: int
    """Of a timed run."""
    copies: int
    """Of the text that a timed run reads."""
    every: int
    """Of the cases of parity, waits, dtypes and memory, each one, or each second, third …"""


FAMILIES = {
    "gpt2": "--model.model_type gpt2 --model.vocab_size 50304 --seq_len 1024",
    "llama": "--model.model_type llama --model.hidden_size 1024 --model.intermediate_size 2816 "
    "--model.num_hidden_layers 20 --model.num_attention_heads 8 --model.vocab_size 32000 --seq_len 2048",
    "modernbert": "--objective masked_lm --model.model_type modernbert --model.hidden_size 768 "
    "--model.intermediate_size 1152 --model.num_hidden_layers 22 --model.num_attention_heads 12 "
    "--model.vocab_size 50368 --seq_len 512",
    "t5": "--objective span_corruption --model.model_type t5 --model.d_model 768 --model.d_kv 64 --model.d_ff 2048 "
    "--model.num_layers 12 --model.num_heads 12 --model.vocab_size 32128 --seq_len 512",
    "bart": "--objective denoising --model.model_type bart --model.d_model 768 --model.encoder_layers 6 "
    "--model.decoder_layers 6 --model.encoder_ffn_dim 3072 --model.decoder_ffn_dim 3072 "
    "--model.encoder_attention_heads 12 --model.decoder_attention_heads 12 --model.vocab_size 50265 --seq_len 512",
    "lstm": "--model.model_type sslm_lstm --model.hidden_size 1024 --model.num_hidden_layers 4 "
    "--model.vocab_size 32000 --seq_len 512",
}
"""Models of real size, whose llama has 300M parameters."""
SHRUNK = {
    "gpt2": "--model.n_embd 64 --model.n_layer 2 --model.n_head 2 --model.vocab_size 640 --seq_len 64",
    "llama": f"{NARROW} --model.vocab_size 640 --seq_len 64",
    "modernbert": f"{NARROW} --model.vocab_size 640 --seq_len 64",
    "t5": "--model.d_model 64 --model.d_ff 128 --model.num_layers 2 --model.num_heads 2 --model.vocab_size 640 "
    "--seq_len 64",
    "bart": "--model.d_model 64 --model.encoder_layers 2 --model.decoder_layers 2 --model.encoder_ffn_dim 128 "
    "--model.decoder_ffn_dim 128 --model.encoder_attention_heads 2 --model.decoder_attention_heads 2 "
    "--model.vocab_size 640 --seq_len 64",
    "lstm": "--model.hidden_size 64 --model.num_hidden_layers 2 --model.vocab_size 640 --seq_len 64",
}
"""What --tiny makes of them; of two flags the last counts."""
REAL = Sizes(
    gpt2=f"--config {ROOT}/configs/gpt2-124m.yaml --data.tokenizer bpe:4096 --batch_size 64 --micro_batch_size 16",
    llama=f"{FAMILIES['llama']} --data.tokenizer bpe:4096 --batch_size 32 --micro_batch_size 8",
    families=FAMILIES,
    attention=(8, 12, 2048, 64),
    num_steps=40,
    copies=20,
    every=1,
)
TINY_BATCH = "--batch_size 4 --micro_batch_size 2 --data.tokenizer bpe:512"
TINY = Sizes(
    gpt2=f"{REAL.gpt2} {SHRUNK['gpt2']} {TINY_BATCH}",
    llama=f"{REAL.llama} {SHRUNK['llama']} {TINY_BATCH}",
    families={name: f"{flags} {SHRUNK[name]}" for name, flags in FAMILIES.items()},
    attention=(2, 2, 128, 16),
    num_steps=8,
    copies=1,
    every=5,
)
