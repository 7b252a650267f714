"""A student's loss beside a teacher, computed some places at a time: against the formulas in float64, whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig

from sslm.models import linear_cross_entropy
from sslm.models.build import build
from sslm.models.divergence import Live, Mix, losses_beside
from sslm.models.head import LanguageModel
from sslm.models.network import Network
from sslm.models.task import NUMBER, SEVERAL, network_for

AUTO = {
    "llama": "AutoModelForCausalLM",
    "cohere": "AutoModelForCausalLM",
    "gemma2": "AutoModelForCausalLM",
    "bert": "AutoModelForMaskedLM",
    "bart": "AutoModelForSeq2SeqLM",
    "sslm_lstm": "AutoModelForCausalLM",
}
KINDS = ["forward_kl", "reverse_kl", "js"]


def network_of(family: str, vocab_size: int, seed: int, max_scored: int | None = None) -> LanguageModel:
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2}
    if family == "gemma2":
        settings |= {"num_key_value_heads": 2, "head_dim": 8}
    if family == "bart":
        settings = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "decoder_ffn_dim": 32}
        settings |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "dropout": 0}
    if family == "bert":
        settings |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    if family == "sslm_lstm":
        settings = {"hidden_size": 16}
    config = AutoConfig.for_model(family, vocab_size=vocab_size, pad_token_id=0, **settings)
    model = build(config, AUTO[family], seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform
    return LanguageModel(model, max_scored, chunks_loss=True)


def formula(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """[…, classes] logits -> […] divergence, by torch's kl_div."""
    p, q = ((some / temperature).softmax(-1) for some in (teacher, student))
    if kind == "forward_kl":
        return F.kl_div(q.log(), p, reduction="none").sum(-1)
    if kind == "reverse_kl":
        return F.kl_div(p.log(), q, reduction="none").sum(-1)
    mean = ((p + q) / 2).log()
    return (F.kl_div(mean, p, reduction="none") + F.kl_div(mean, q, reduction="none")).sum(-1) / 2


@pytest.mark.parametrize("family", AUTO)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_formulas(
    kind: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "FEWEST_TOKENS", 5)
    monkeypatch.setitem(linear_cross_entropy.CHUNK, "cpu", 5 * 50)  # five places at a time, the last parts smaller
    scored = 4 if family == "bert" else None
    student = network_of(family, 50, 0, scored).train()
    teacher = network_of(family, 64, 1, scored).eval()  # with rows of padding
    torch.manual_seed(0)
    ids, labels = torch.randint(1, 50, (3, 9)), torch.randint(1, 50, (3, 9))
    labels[:, ::2] = -100
    tensors = {"input_ids": ids, "labels": labels}
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)  # also rows that count unlike each other

    with torch.no_grad():
        taught = teacher(**tensors, outputs=True)
    made = losses_beside(student(**tensors, outputs=True), Live(taught), student.token_losses, Mix(0.3, 2.0, kind))  # type: ignore[arg-type]
    inputs = {"input_ids": ids}
    if family == "bart":
        inputs["decoder_input_ids"] = torch.cat([torch.full((3, 1), 2), labels[:, :-1].clamp(min=0)], 1)
    ours, theirs = student.model(**inputs).logits, teacher.model(**inputs).logits[..., :50]
    own = F.cross_entropy(ours.flatten(0, 1), labels.flatten(), reduction="none").view(3, 9)
    apart = formula(ours, theirs, kind, 2.0) * (labels >= 0)
    expected = (0.7 * own + 0.3 * 4 * apart).sum(1)
    assert torch.allclose(made.rows, expected, rtol=1e-10)
    assert torch.allclose(made.own, own.sum(1), rtol=1e-10)
    assert torch.allclose(made.divergence, apart.sum(1), rtol=1e-10)
    for factor in (torch.ones(()).expand(3).double(), weight):
        parameters = list(student.parameters())
        sums = [(rows * factor).sum() if factor is weight else rows.sum() for rows in (made.rows, expected)]
        pairs = [torch.autograd.grad(total, parameters, retain_graph=True) for total in sums]
        assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*pairs, strict=True))


def of_task(kind: str, seed: int) -> Network:
    auto = {"span": "QuestionAnswering", "tags": "TokenClassification"}.get(kind, "SequenceClassification")
    config = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 1 if kind == NUMBER else 2 if kind == "span" else 3
    config.problem_type = kind if kind in (NUMBER, SEVERAL) else None
    model = build(config, f"AutoModelFor{auto}", seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return network_for(model).eval()


@pytest.mark.parametrize("kind", ["classes", "tags", "span", SEVERAL, NUMBER])
def test_of_fine_tuning_it_is_the_divergence_of_what_the_heads_say(kind: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(1, 50, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    labels = {
        "classes": torch.tensor([[0], [2], [-100]]),
        "tags": torch.where(mask > 0, ids % 3, -100),
        "span": torch.tensor([[1, 3], [0, 0], [2, 2]]),
        SEVERAL: torch.tensor([[0, 1, 1], [0, 0, 0], [-100, -100, -100]]),
        NUMBER: torch.tensor([[0.5], [math.nan], [-2.0]], dtype=torch.float64),
    }[kind]
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    student, teacher = of_task(kind, 0), of_task(kind, 1)
    with torch.no_grad():
        taught = teacher(**tensors, outputs=True)
    made = losses_beside(
        student(**tensors, outputs=True), Live(taught), student.token_losses, Mix(0.5, 2.0, "forward_kl")
    )
    raw = [network(input_ids=ids, attention_mask=mask) for network in (student, teacher)]
    if kind == SEVERAL:
        p, q = ((some / 2).sigmoid() for some in (raw[1], raw[0]))
        apart = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()) * (labels >= 0) * 4
    elif kind == NUMBER:
        apart = torch.where(labels.isnan(), 0.0, (raw[0] - raw[1]).square())
    elif kind == "span":
        real = [[some[row, :, : mask[row].sum()] for some in raw] for row in range(3)]
        apart = torch.stack([formula(*pair, "forward_kl", 2.0).sum() * 4 for pair in real])
    else:
        apart = formula(raw[0].view(*labels.shape, 3), raw[1].view(*labels.shape, 3), "forward_kl", 2.0)
        apart = apart * (labels >= 0) * 4
    expected = 0.5 * student(**tensors) + 0.5 * apart.view(3, -1).sum(1)
    assert torch.allclose(made.rows, expected, rtol=1e-9)
    parameters = [p for p in student.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x.sum(), parameters, allow_unused=True) for x in (made.rows, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-8, atol=1e-10)  # type: ignore[arg-type]
