"""Rates and weight decay of parameters by their names."""

import time
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sslm.cli.parse import parse
from sslm.config import GroupConfig, OptimConfig
from sslm.system.errors import UserError
from sslm.training.optimizers.build import build_optimizer
from sslm.training.optimizers.by_name import check_groups, group_of
from sslm.training.optimizers.groups import set_learning_rate
from tests.support.runs import TrainTiny, losses_of


def llama() -> LlamaForCausalLM:
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes))


def test_the_first_pattern_in_a_name_gives_rate_and_weight_decay() -> None:
    model = llama()
    groups = [
        GroupConfig("embed|^lm_head", lr=0.1, weight_decay=0.0),
        GroupConfig("layers.1", 0.5),
        GroupConfig("q_proj", 2),
    ]
    optim = OptimConfig(lr=1.0, groups=groups)
    optimizer = build_optimizer(model, optim, rates=dict.fromkeys(model.parameters(), 0.5), own=group_of(groups, model))
    set_learning_rate(optimizer.param_groups, 1.0)
    of = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name.removesuffix(".weight"): of[parameter] for name, parameter in model.named_parameters()}
    assert found["model.embed_tokens"] == found["lm_head"] == (0.05, 0.0)
    assert found["model.layers.0.self_attn.q_proj"] == (1.0, 0.1)
    assert found["model.layers.1.self_attn.q_proj"] == (0.25, 0.1)
    assert found["model.layers.1.input_layernorm"] == (0.25, 0.0)
    assert found["model.norm"] == (0.5, 0.0)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "[{names: embd}]",
            r"--optim.groups: names 'embd': in no parameter's name.*there are model.embed_tokens.weight",
        ),
        ("[{names: '['}]", r"names '\[': is no regular expression \(unterminated"),
        ("[{names: '(a+)+$'}]", r"without parentheses"),
        ("[{names: 'a*a*a*a*b'}]", r"at most 3 of \* \+ \? {"),
        (f"[{{names: {'a' * 300}}}]", "200 characters"),
        ("[{names: embed, lr: -1}]", r"names 'embed': lr -1.0: expected a number of 0 or more"),
        ("[{names: embed, weight_decay: .inf}]", r"weight_decay inf: expected a number"),
        ("[{names: embed, rate: 1}]", r"--optim.groups.rate: there is no such setting"),
        ("[{lr: 1}]", r"names is missing"),
    ],
)
def test_what_is_no_group_is_refused(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_groups(parse(["--optim.groups", typed]).optim.groups or [], llama())


def test_no_pattern_takes_long() -> None:
    class Long(torch.nn.Module):
        def named_parameters(self, *_: object, **__: object) -> Any:
            return [("a" * 100, torch.nn.Parameter(torch.zeros(1)))] * 50

    began = time.perf_counter()
    with pytest.raises(UserError, match="in no parameter's name"):
        check_groups([GroupConfig("a*a*a*b")], Long())
    assert time.perf_counter() - began < 20


def test_what_has_a_rate_of_0_stays_and_the_run_goes_on_exactly(train_tiny: TrainTiny, tmp_path: Any) -> None:
    flags = ["--optim.groups", "[{names: 'layers|norm|lm_head', lr: 0}, {names: embed, weight_decay: 0.3}]"]
    assert train_tiny(tmp_path / "straight", *flags) == 0
    assert train_tiny(tmp_path / "run", *flags, "--stop_after", "3steps") == 75
    assert train_tiny(tmp_path / "run", *flags) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "straight")
    assert train_tiny(tmp_path / "typo", "--optim.groups", "[{names: layer.0}]") == 2
