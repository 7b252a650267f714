"""From hidden states to the loss: each family's own head, over scored places alone, without made-up entries."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, BertConfig, PreTrainedModel

from sslm.data.stream.recipe import IGNORED
from sslm.models.build import build
from sslm.models.head import UNPADDED, LanguageModel, decoder_inputs, first_of_head, scored_places
from tests.support.models import BOTH, both, masked

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS = [
    "albert",
    "bert",
    "camembert",
    "convbert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "eurobert",
    "fnet",
    "ibert",
    "megatron-bert",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "nystromformer",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "yoso",
]


def encoder(model_type: str) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **SMALL)
    return build(config, "AutoModelForMaskedLM", 0).eval()


@pytest.mark.parametrize("model_type", ENCODERS)
def test_scored_places_alone_give_the_loss_of_transformers(model_type: str) -> None:
    model, (ids, labels) = encoder(model_type), masked()
    head = first_of_head(model)
    assert head is not None
    seen: list[int] = []
    network = LanguageModel(model, max_scored=5)
    model.get_submodule(head).register_forward_hook(lambda _, arguments, output: seen.append(arguments[0].shape[1]))
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        ours = network(labels, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert seen == [24, 5]
    assert ours.sum().item() / 12 == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "deberta-v2"])
def test_gradients_are_those_of_all_places(model_type: str) -> None:
    gradients = []
    for max_scored in (None, 5):
        model, (ids, labels) = encoder(model_type).double(), masked()
        LanguageModel(model, max_scored)(labels, input_ids=ids, attention_mask=torch.ones_like(ids)).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", BOTH)
def test_a_decoders_inputs_and_loss_are_those_of_transformers(name: str) -> None:
    model, (ids, labels) = both(name), (masked()[0], masked(length=9)[0])
    labels[0, 6:] = IGNORED
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 20:] = 0
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=attention_mask, labels=labels).loss
        ours = LanguageModel(model)(labels, input_ids=ids, attention_mask=attention_mask)
    assert ours.sum().item() / (labels != IGNORED).sum().item() == pytest.approx(theirs.item(), rel=1e-6)
    if name != "bart":
        expected = model._shift_right(labels) if hasattr(model, "_shift_right") else None
        assert torch.equal(decoder_inputs(labels, model.config), expected)


def test_each_document_of_a_target_begins_with_the_start() -> None:
    labels = torch.tensor([[7, 8, 9, 5, 6, IGNORED]])
    config = AutoConfig.for_model("t5", pad_token_id=0, decoder_start_token_id=3)
    assert decoder_inputs(labels, config).tolist() == [[3, 7, 8, 9, 5, 6]]
    segments = torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert decoder_inputs(labels, config, segments).tolist() == [[3, 7, 8, 3, 5, 3]]


@pytest.mark.parametrize("max_scored", [None, 5])
def test_entries_that_round_the_vocabulary_up_never_win(max_scored: int | None) -> None:
    config = BertConfig(**{**SMALL, "vocab_size": 128}, **{UNPADDED: 96})
    model = build(config, "AutoModelForMaskedLM", 0).eval()
    with torch.no_grad():
        model.cls.predictions.bias[96:] = 100.0
    ids, labels = masked()
    network = LanguageModel(model, max_scored)
    with torch.no_grad():
        assert network(input_ids=ids).shape == (3, 24, 96)
        losses, predicted, _ = network(labels, input_ids=ids, predict=True)
    assert predicted.max() < 96
    assert ((predicted == IGNORED) == (labels == IGNORED)).all()
    assert losses.max() < 5 * 10
    network.train()(labels, input_ids=ids).sum().backward()
    assert model.cls.predictions.bias.grad[96:].abs().max() == 0


def test_predictions_stand_where_they_were_made() -> None:
    model, (ids, labels) = encoder("bert"), masked()
    with torch.no_grad():
        everywhere = model(input_ids=ids).logits.argmax(-1)
        predicted = LanguageModel(model, 5)(labels, input_ids=ids, predict=True).tokens
    assert torch.equal(predicted, torch.where(labels == IGNORED, IGNORED, everywhere))


def test_places_are_those_scored_first_and_in_order() -> None:
    labels = torch.tensor([[IGNORED, 7, IGNORED, 5, 3], [IGNORED, IGNORED, 4, IGNORED, IGNORED]])
    assert scored_places(labels, 3).tolist() == [[1, 3, 4], [2, 0, 1]]


class Scrambling(torch.nn.Module):
    """A head that looks at its neighbours: what is let through to it changes what it says."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden.cumsum(1))


def test_a_head_that_mixes_places_is_given_all_of_them() -> None:
    model, (ids, labels) = encoder("bert"), masked()
    model.cls = Scrambling(model.cls)
    assert first_of_head(model) is None
    with torch.no_grad():
        ours = LanguageModel(model, 5)(labels, input_ids=ids)
        theirs = LanguageModel(model)(labels, input_ids=ids)
    assert torch.allclose(ours, theirs, atol=1e-5)
