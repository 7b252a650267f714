"""Students that begin with some of a teacher's layers, of several architectures."""

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from sslm.models.build import build
from sslm.models.layers_of import layers_of, parse_layers
from sslm.system.errors import UserError

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40, "pad_token_id": 0}
FAMILIES = {
    "llama": ("AutoModelForCausalLM", SIZES | {"num_hidden_layers": 4}),
    "gpt2": ("AutoModelForCausalLM", {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 40}),
    "gemma2": ("AutoModelForCausalLM", SIZES | {"num_hidden_layers": 4, "head_dim": 8, "num_key_value_heads": 2}),
    "bert": ("AutoModelForMaskedLM", SIZES | {"num_hidden_layers": 4}),
    "modernbert": ("AutoModelForMaskedLM", SIZES | {"num_hidden_layers": 4}),
    "t5": (
        "AutoModelForSeq2SeqLM",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "vocab_size": 40},
    ),
    "bart": (
        "AutoModelForSeq2SeqLM",
        {"d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40},
    ),
}


def teacher_of(family: str) -> PreTrainedModel:
    auto_class, settings = FAMILIES[family]
    return build(AutoConfig.for_model(family, **settings), auto_class, 0).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_has_the_teachers_layers_and_all_around_them(family: str) -> None:
    teacher = teacher_of(family)
    student, all_of_it = layers_of(teacher, parse_layers("0,2")), layers_of(teacher, parse_layers("every 1"))
    ids = torch.arange(1, 9)[None]
    both = {"decoder_input_ids": ids} if teacher.config.is_encoder_decoder else {}
    logits = [model.eval()(input_ids=ids, **both).logits for model in (teacher, all_of_it, student)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    theirs, ours = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert sum(p.numel() for p in ours.values()) < sum(p.numel() for p in theirs.values())
    second = [name for name in ours if ".1." in name and name.replace(".1.", ".2.") in theirs]
    in_stacks = [name for name in second if name.split(".1.")[0].endswith(("layers", "layer", "h", "block"))]
    assert in_stacks
    for name in in_stacks:
        assert torch.equal(ours[name], theirs[name.replace(".1.", ".2.", 1)])
    type(student)(student.config).load_state_dict(student.state_dict())  # the config says what it is


def test_layers_that_are_not_there_or_not_alike_are_refused() -> None:
    for text in ("", "every", "every 0", "2,1", "1,1", "-1", "a", "every 2,3", "1e3"):
        with pytest.raises(UserError, match="expected numbers of layers from 0 on, rising"):
            parse_layers(text)
    with pytest.raises(UserError, match="there is no layer 4; the teacher has 0 to 3"):
        layers_of(teacher_of("llama"), parse_layers("0,4"))
    with pytest.raises(UserError, match=r"t5 can't be made of these layers .* take layer 0 too"):
        layers_of(teacher_of("t5"), parse_layers("1,2"))  # whose first has the positions
