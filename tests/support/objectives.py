"""Every objective with a small model for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """An objective and a small model for it."""

    objective: str
    flags: str
    dropout: str
    metric: str
    auto_class: str
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.objective


ENCODER = (
    "--model.hidden_size 32 --model.intermediate_size 64 --model.num_hidden_layers 2 --model.num_attention_heads 2"
)
T5 = "--model.d_model 32 --model.d_kv 16 --model.d_ff 64 --model.num_layers 2 --model.num_heads 2"
BART = (
    "--model.d_model 32 --model.encoder_layers 2 --model.decoder_layers 2 --model.encoder_ffn_dim 64 "
    "--model.decoder_ffn_dim 64 --model.encoder_attention_heads 2 --model.decoder_attention_heads 2"
)
NO_DROPOUT = {
    "bert": "--model.hidden_dropout_prob 0 --model.attention_probs_dropout_prob 0",
    "t5": "--model.dropout_rate 0",
    "bart": "--model.dropout 0",
}
CASES = [
    Case(
        "masked_lm",
        f"--model.model_type bert {ENCODER}",
        NO_DROPOUT["bert"],
        "pseudo_perplexity",
        "AutoModelForMaskedLM",
    ),
    Case(
        "masked_lm",
        f"{ENCODER} --objective.unit span --data.packing best_fit --data.document_mask true",
        "",
        "accuracy",
        "AutoModelForMaskedLM",
        "masked_lm-spans",
    ),
    Case("span_corruption", T5, NO_DROPOUT["t5"], "span_exact_match", "AutoModelForSeq2SeqLM"),
    Case(
        "span_corruption",
        f"{T5} --data.packing best_fit",
        NO_DROPOUT["t5"],
        "accuracy",
        "AutoModelForSeq2SeqLM",
        "span_corruption-packed",
    ),
    Case("denoising", BART, NO_DROPOUT["bart"], "accuracy", "AutoModelForSeq2SeqLM"),
    Case("token_order", ENCODER, "", "restored_order", "AutoModelForMaskedLM"),
    Case(
        "token_order",
        f"--model.model_type t5 {T5} --objective.mark true",
        NO_DROPOUT["t5"],
        "accuracy",
        "AutoModelForSeq2SeqLM",
        "token_order-both",
    ),
    Case(
        "token_order",
        f"--model.model_type llama {ENCODER} --objective.unit sentence",
        "",
        "restored_order",
        "AutoModelForCausalLM",
        "token_order-decoder",
    ),
]
