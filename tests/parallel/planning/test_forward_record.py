"""What compiled blocks keep."""

from transformers import Gemma2Config, ModernBertConfig

from sslm.models.build import on_meta
from sslm.parallel.planning.activation_memory import measure
from tests.support.families import BLOCKS, CAUSAL, IDS, LENGTH, MASKED, SHAPES, VOCABULARY


def test_a_compiled_block_keeps_the_scores_that_a_soft_cap_is_computed_from() -> None:
    def kept(soft_cap: float | None) -> float:
        config = Gemma2Config(
            **BLOCKS, vocab_size=VOCABULARY, num_key_value_heads=4, head_dim=16, attn_logit_softcapping=soft_cap
        )
        model = on_meta(config, CAUSAL)
        model.set_attn_implementation("eager")
        return measure(model, SHAPES, on_gpu=True).one.compiled

    assert kept(50.0) - kept(None) == 2 * 4 * LENGTH * LENGTH * 4  # layers, heads, fp32


def test_each_compiled_block_keeps_the_mask_as_the_numbers_that_its_kernel_adds() -> None:
    def kept(num_windows: int) -> float:
        layers = ["sliding_attention"] * num_windows + ["full_attention"] * (2 - num_windows)
        config = ModernBertConfig(**BLOCKS, vocab_size=VOCABULARY, **IDS, layer_types=layers, local_attention=16)
        return measure(on_meta(config, MASKED), SHAPES, on_gpu=True).one.compiled

    assert kept(2) - kept(1) == kept(1) - kept(0) == LENGTH * LENGTH * 4
