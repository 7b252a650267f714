"""What layers say, and the losses made of it: against transformers' own hidden states and attention, and by hand."""

import shlex
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from sslm.config import DistillConfig
from sslm.models.build import build
from sslm.models.layer_losses import LayerWeights, layer_losses, uniform_map
from sslm.models.layer_states import LayerStates, shapes_of
from sslm.models.network import Network
from sslm.models.task import network_for
from sslm.system.errors import UserError
from sslm.training.distillation.layers import depths_of, draw_projections, plan_layers

FAMILIES = {
    "bert": ("AutoModelForMaskedLM", {}),
    "llama": ("AutoModelForCausalLM", {"num_key_value_heads": 1}),
    "modernbert": ("AutoModelForMaskedLM", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    "t5": ("AutoModelForSeq2SeqLM", {"d_kv": 8, "dropout_rate": 0, "decoder_start_token_id": 0}),
    "classifier": ("AutoModelForSequenceClassification", {"problem_type": "single_label_classification"}),
}
WEIGHTS = LayerWeights(2.0, 0.5)


def shape_of(width: int, depth: int, heads: int = 2) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 32, "num_attention_heads": heads}


def network_of(family: str, width: int, depth: int, seed: int, heads: int = 2) -> Network:
    auto_class, more = FAMILIES[family]
    shape = shape_of(width, depth, heads)
    if family == "t5":
        shape = {"d_model": width, "num_layers": depth, "num_heads": 2, "d_ff": 32}
    more = {key: value[:depth] if key == "layer_types" else value for key, value in more.items()}  # type: ignore[index]
    kind = {"classifier": "bert"}.get(family, family)
    config: Any = AutoConfig.for_model(kind, vocab_size=50, pad_token_id=0, **shape, **more)
    return network_for(build(config, auto_class, seed).double()).eval()


def tensors_of(family: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids, labels = torch.randint(1, 50, (3, 9)), torch.randint(1, 50, (3, 9))
    labels[:, ::2], labels[1] = -100, -100
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    if family == "classifier":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([[1], [0], [-100]])}
    if family == "t5":
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {"input_ids": ids, "labels": labels}


def watched(student: Network, teacher: Network, layer_map: str | None) -> None:
    how = DistillConfig(hidden_weight=2.0, attention_weight=0.5, layer_map=layer_map)
    plan = plan_layers(student.model, depths_of(student.model), teacher.model, how)
    student.layer_states = plan.watch(student.model, WEIGHTS, is_teacher=False).double()
    teacher.layer_states = plan.watch(teacher.model, WEIGHTS, is_teacher=True)
    draw_projections(student.layer_states, 0)


def said_by_transformers(network: Network, tensors: dict[str, Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Hidden states and attention's probabilities of each stack, as transformers returns them."""
    model = network.model
    model.set_attn_implementation("eager")
    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels" or model.config.is_encoder_decoder}
    made = model(**inputs, output_hidden_states=True, output_attentions=True)
    if model.config.is_encoder_decoder:
        encoder = (made.encoder_hidden_states, made.encoder_attentions)
        return [encoder, (made.decoder_hidden_states, made.decoder_attentions)]
    return [(made.hidden_states, made.attentions)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_what_transformers_returns_and_nothing_else_changes(family: str) -> None:
    student, teacher, tensors = network_of(family, 16, 2, 0), network_of(family, 24, 4, 1), tensors_of(family)
    before = student(**tensors), student(**tensors, outputs=True).states
    last = () if family in ("bert", "classifier") else (",2:4",)  # transformers' last state is normed
    watched(student, teacher, "0:0,1:2" + ("" if last else ",2:4"))
    after = student(**tensors, outputs=True)
    assert torch.allclose(before[0], student(**tensors), rtol=1e-12)
    assert torch.allclose(before[1], after.states, rtol=1e-10)
    theirs = teacher(**tensors, outputs=True).layers
    for said, (hidden, probabilities) in zip(theirs.said, said_by_transformers(teacher, tensors), strict=True):
        for number, state in zip((0, 2, 4), said.hidden, strict=False):
            assert torch.allclose(state, hidden[number], rtol=1e-10)
        assert len(said.scores) == len(said.hidden) - 1
        for number, scores in zip((2, 4), said.scores, strict=False):
            found = scores.values.masked_fill(~scores.visible, -torch.inf).softmax(-1)
            assert torch.allclose(found, probabilities[number - 1], atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_mean_squares_at_the_places_that_count(family: str) -> None:
    student, teacher, tensors = network_of(family, 16, 2, 0), network_of(family, 24, 4, 1), tensors_of(family)
    watched(student, teacher, None)
    ours, theirs = (network(**tensors, outputs=True).layers for network in (student, teacher))
    labels = tensors["labels"]
    num_targets = (labels >= 0).sum(1)
    made = layer_losses(ours.said, theirs.said, ours.places, num_targets, WEIGHTS)
    is_token = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"])) > 0
    places = {"t5": [is_token, labels >= 0], "classifier": [is_token]}.get(family, [labels >= 0])
    expected = torch.zeros(3, dtype=torch.float64)
    for stack, counted in enumerate(places):
        one, other = ours.said[stack], theirs.said[stack]
        assert (len(one.hidden), len(one.scores)) == (3, 2)
        for row, place in counted.nonzero().tolist():
            share = float(num_targets[row] / counted[row].sum())
            for pair in zip(one.hidden, other.hidden, strict=True):
                expected[row] += share * 2.0 * (pair[0][row, place] - pair[1][row, place]).square().mean()
            for first, second in zip(one.scores, other.scores, strict=True):
                seen = first.visible.expand_as(first.values)[row, 0, place]
                apart = first.values[row, :, place, seen] - second.values[row, :, place, seen]
                expected[row] += share * 0.5 * apart.square().mean()
    assert torch.allclose(made, expected, rtol=1e-10)
    if family != "classifier":
        assert made[1] == 0  # nothing is scored there
    made.sum().backward()
    assert student.layer_states is not None
    assert all(weight.grad.abs().sum() > 0 for weight in student.layer_states.parameters())


def test_a_layer_may_be_compared_with_embeddings_which_have_no_attention() -> None:
    student, teacher, tensors = network_of("bert", 16, 2, 0), network_of("bert", 24, 4, 1), tensors_of("bert")
    watched(student, teacher, "0:2,1:0,2:2")
    ours, theirs = (network(**tensors, outputs=True).layers.said[0] for network in (student, teacher))
    assert [len(some) for some in (ours.hidden, theirs.hidden, ours.scores, theirs.scores)] == [3, 3, 1, 1]
    assert theirs.hidden[0] is theirs.hidden[2]


def test_layers_are_paired_evenly() -> None:
    assert uniform_map(3, 12) == ((0, 0), (1, 4), (2, 8), (3, 12))
    assert uniform_map(2, 2) == ((0, 0), (1, 1), (2, 2))


def test_a_model_is_left_as_it_was_after_a_try() -> None:
    network = network_of("bert", 16, 2, 0)
    assert [tuple(shape) for shape in shapes_of(network.model, scores=True)] == [(2, 16, 2)]
    assert network.model.config._attn_implementation == "sdpa"
    assert not any("keep_scores" in vars(layer) for layer in network.model.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.model.bert.encoder.layer)


@pytest.mark.parametrize(
    ("kind", "flags", "says"),
    [
        ("mamba", "--attention", "mamba's attention, if it has any, is not SDPA's"),
        ("albert", "--hidden", "albert's layers can't be told apart"),
        ("bert", "--attention heads=4", "the teacher has 4 in a layer and the student 2; give --model.num_attention"),
        ("bert", "--map 0:0,3:1", "the student has layers 0 (embeddings) to 2, there is no 3"),
        ("bert", "--map 0:0,1:9", "the teacher has layers 0 (embeddings) to 4, there is no 9"),
        ("bert", "--map 1:0,0:1", "expected STUDENT:TEACHER of layers, the student's rising"),
        ("bert", "--map 1", "--distill.layer_map 1: expected STUDENT:TEACHER"),
        ("bert", "--attention 0:3", "--distill.layer_map 0:3: embeddings have no attention; give more"),
        ("t5", "--hidden", "one has an encoder and a decoder"),
    ],
)
def test_layers_that_cant_be_compared_are_refused(kind: str, flags: str, says: str) -> None:
    what, *more = shlex.split(flags)
    teacher = network_of("bert", 24, 4, 1, heads=4 if "heads=4" in more else 2).model
    auto_class = {"albert": "AutoModelForMaskedLM", "mamba": "AutoModelForCausalLM"}.get(kind)
    if auto_class is None:
        student = network_of(kind, 16, 2, 0).model
    else:
        student = build(AutoConfig.for_model(kind, vocab_size=50, **shape_of(16, 2)), auto_class, 0)
    how = DistillConfig(
        hidden_weight=1.0,
        attention_weight=float(what == "--attention"),
        layer_map=next((word for word in more if "=" not in word), None),
    )
    with pytest.raises(UserError, match="--distill") as refusal:
        plan_layers(student, [2] * len(depths_of(student) or [1]), teacher, how)
    assert says in str(refusal.value)


def test_states_are_kept_only_while_they_are_asked_for() -> None:
    network = network_of("bert", 16, 2, 0)
    states = network.layer_states = LayerStates(network.model, hidden=[[0, 1, 2]], scores=[[1, 2]])
    network(**tensors_of("bert"))
    assert states.end() == [([], [])]
