"""The recurrent language model: what it is made of, and that it trains like any other."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from sslm.models.architecture import model_config
from sslm.models.blocks import blocks
from sslm.models.build import build, check_causal, check_runs, on_meta
from sslm.models.head import LanguageModel
from sslm.models.lstm import Documents, LstmConfig, LstmForCausalLM, VariationalDropout
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import parse_recompute
from sslm.system.errors import UserError
from sslm.train import main
from tests.support.processes import run_command, run_ranks
from tests.support.runs import SMALL_RUN, TINY

AUTO = "AutoModelForCausalLM"
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def config(**settings: object) -> LstmConfig:
    found = model_config(
        {**SMALL, **settings},
        model_type="sslm_lstm",
        default={"model_type": "llama"},
        auto_class=AUTO,
        vocab_size=64,
        seq_len=4096,
        special_ids={"eos_token_id": 0},
    )
    assert isinstance(found, LstmConfig)
    return found


def test_is_built_as_other_architectures_are() -> None:
    model = on_meta(config(), AUTO)
    check_runs(model, AUTO)
    check_causal(build(config(), AUTO, 0))
    assert isinstance(model, LstmForCausalLM)
    assert isinstance(AutoModelForCausalLM.from_config(AutoConfig.for_model("sslm_lstm", **SMALL)), LstmForCausalLM)
    assert model.num_parameters() == 64 * 32 + 2 * (2 * 4 * 32 * 32 + 2 * 4 * 32)


def test_is_torchs_own_stack_of_lstms() -> None:
    model = build(config(embedding_size=16, tie_word_embeddings=False), AUTO, 0)
    stack = torch.nn.LSTM(16, 32, num_layers=2, batch_first=True)
    stack.load_state_dict(
        {f"{name[:-1]}{n}": p for n, layer in enumerate(model.layers) for name, p in layer.named_parameters()}
    )
    ids = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(ids).logits, model.lm_head(stack(model.embed_tokens(ids))[0]), atol=1e-6)


def test_forget_gates_are_open_at_first_and_small_embeddings_are_tied() -> None:
    model = build(config(), AUTO, 0)
    bias = model.layers[1].bias_ih_l0 + model.layers[1].bias_hh_l0
    assert bias.view(4, 32).sum(1).tolist() == [0, 32, 0, 0]
    model.resize_token_embeddings(80)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert model(torch.full((1, 3), 79)).logits.shape == (1, 3, 80)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"embedding_size": 16}, "give tie_word_embeddings false"),
        ({"dropout": 1.0}, "less than 1"),
        ({"hidden_size": 0}, "at least 1"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"num_attention_heads": 2}, "has no such key"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config(**settings)


def test_dropout_keeps_or_drops_a_unit_for_a_whole_row() -> None:
    dropout, ones = VariationalDropout(0.5), torch.ones(4, 7, 32)
    torch.manual_seed(0)
    dropped = dropout(ones)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropout.eval()(ones), ones)


@pytest.mark.parametrize("cuts", [[], [1], [7], [1, 2, 3, 4, 5, 6, 7], [3, 4], [5]])
def test_every_token_is_in_one_place_of_one_group(cuts: list[int]) -> None:
    segments = torch.zeros(2, 8, dtype=torch.int32)
    segments[0] = (torch.arange(8)[:, None] >= torch.tensor(cuts or [99])).sum(1)
    documents = Documents.of(segments)
    tokens = torch.cat([rectangle.flatten()[inside] for rectangle, inside in documents.groups])
    assert torch.equal(tokens[documents.order], torch.arange(16))
    assert sum(rectangle.numel() for rectangle, _ in documents.groups) < 2 * 16


@pytest.mark.parametrize("autocast", [False, True])
def test_each_document_begins_with_a_state_of_zeros(autocast: bool) -> None:
    model = build(config(), AUTO, 0)
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
    segments = torch.zeros(2, 40, dtype=torch.int32)
    for row, start in [(0, 7), (0, 8), (0, 30), (1, 39)]:
        segments[row, start:] += 1

    def difference(row: int, start: int, end: int) -> Tensor:
        return (together[row, start:end] - model(ids[row, start:end][None]).logits[0]).abs().max()

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        together = model(ids, segment_ids=segments).logits
        for row, start, end in [(0, 0, 7), (0, 7, 8), (0, 8, 30), (0, 30, 40), (1, 0, 39), (1, 39, 40)]:
            assert difference(row, start, end) <= (1e-2 if autocast else 1e-6)


DOCUMENTS = torch.tensor([[0] * 7 + [1] + [2] * 22 + [3] * 10, [0] * 39 + [1]])


def losses(network: nn.Module, documents: Tensor | None, num_steps: int = 4) -> list[float]:
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
    optimizer, found = torch.optim.SGD(network.parameters(), lr=1e-3), []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = network(labels=ids, input_ids=ids, segment_ids=documents).sum()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
def test_recomputing_layers_changes_no_gradient(documents: Tensor | None) -> None:
    def gradients(how: str) -> list[Tensor]:
        network = LanguageModel(build(config(), AUTO, 0)).train()
        parallelize(network, network.model, None, recomputation=parse_recompute(how))
        calls = []
        for layer in network.model.layers:
            layer.register_forward_pre_hook(lambda layer, _: calls.append(layer.gradient_checkpointing))
        losses(network, documents, num_steps=1)
        assert calls == [how == "full"] * 2
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    kept, recomputed = gradients("none"), gradients("full")
    assert len(kept) == 1 + 2 * 4
    assert all(map(torch.equal, kept, recomputed))


def shared_by_processes(rank: int, world: int) -> None:
    for documents in (None, DOCUMENTS):
        whole, shared = (LanguageModel(build(config(), AUTO, 0)) for _ in range(2))
        mesh = init_device_mesh("cpu", (world,))
        for block in blocks(shared.model):
            fully_shard(block, mesh=mesh)
        fully_shard(shared, mesh=mesh)
        weight = shared.model.layers[1].weight_hh_l0
        assert isinstance(weight, DTensor)
        assert weight.to_local().shape == (4 * 32 / world, 32)
        assert losses(shared, documents) == pytest.approx(losses(whole, documents), rel=1e-6)
        assert shared.model.state_dict().keys() == whole.model.state_dict().keys()


@pytest.mark.slow
def test_processes_that_share_its_layers_train_as_one_does(tmp_path: Path) -> None:
    run_ranks(shared_by_processes, 2, tmp_path)


def test_weights_have_the_names_that_torch_gives_them() -> None:
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert [name for name, _ in build(config(), AUTO, 0).named_parameters()] == [
        "embed_tokens.weight",
        *(f"layers.{n}.{name}" for n in range(2) for name in names),
    ]


def small_lstm(tiny: list[str]) -> list[str]:
    architecture = ["--model.model_type", "sslm_lstm", "--model.hidden_size", "32"]
    return [*SMALL_RUN, *tiny[len(TINY) :], *architecture, "--optim.lr", "0.01"]


def test_trains_and_goes_on_as_if_never_stopped(tiny: list[str], tmp_path: Path) -> None:
    flags = [*small_lstm(tiny), "--model.dropout", "0.2"]
    assert main([*flags, "--run_dir", str(tmp_path / "whole")]) == 0
    assert main([*flags, "--run_dir", str(tmp_path / "parts"), "--stop_after", "5steps"]) == 75
    assert main([*flags, "--run_dir", str(tmp_path / "parts")]) == 0
    whole, parts = (load_file(tmp_path / run / "export/model.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    assert losses[-1] < losses[0]
    # not by from_pretrained: transformers' threads that read weights may outlive the call
    exported = build(AutoConfig.from_pretrained(tmp_path / "whole/export"), AUTO, 0)
    assert exported.load_state_dict(whole, strict=False) == (["lm_head.weight"], [])  # tied


WITHOUT_SSLM = """
import sys

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sslm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Uninstalled())

import json
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, again, ids = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert tokenizer.decode(tokenizer("Hello there")["input_ids"]) == "Hello there"
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "sslm_lstm"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
resaved = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(resaved(ids).logits, model(ids).logits)
    print(json.dumps(model(ids).logits.tolist()))
"""


def test_exported_folder_brings_its_code_and_loads_where_sslm_is_not_installed(tiny: list[str], tmp_path: Path) -> None:
    assert main([*small_lstm(tiny), "--max_steps", "1", "--run_dir", str(tmp_path / "run")]) == 0
    export = tmp_path / "run/export"
    assert json.loads((export / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "lstm.LstmConfig",
        "AutoModelForCausalLM": "lstm.LstmForCausalLM",
    }
    assert (export / "README.md").read_text().count("trust_remote_code=True") == 2
    ours = build(AutoConfig.from_pretrained(export), AUTO, 0)
    assert isinstance(ours, LstmForCausalLM)  # where sslm is there, nothing is asked and its own class is taken
    ours.load_state_dict(load_file(export / "model.safetensors"), strict=False)
    ids = torch.arange(12).view(2, 6)
    (tmp_path / "load.py").write_text(WITHOUT_SSLM)
    loaded = run_command(
        [str(tmp_path / "load.py"), str(export), str(tmp_path / "again"), json.dumps(ids.tolist())],
        env={"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert loaded.returncode == 0, loaded.stderr
    with torch.no_grad():
        assert torch.allclose(
            torch.tensor(json.loads(loaded.stdout.splitlines()[-1])), ours.eval()(ids).logits, atol=1e-6
        )
