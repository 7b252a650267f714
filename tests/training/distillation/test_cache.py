"""What a teacher said, kept by stream position: as the live teacher, on any number of processes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sslm.__main__ import main as sslm
from sslm.data.stream.batches import row_digests
from sslm.models.divergence import Live, Mix, divergence, losses_beside
from sslm.models.outputs import Outputs
from sslm.system.errors import UserError
from sslm.train import main
from sslm.training.distillation.cache import FORMAT, TeacherCache, TopK, stretches, top_k
from tests.support.files import flip
from tests.support.processes import train_forked
from tests.support.runs import losses_of


def own(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "js"])
def test_all_classes_give_the_live_teachers_losses_and_fewer_count_the_rest_as_one(kind: str) -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 30, (2, 5))
    targets[0, :2] = -100
    states = torch.randn(2, 5, 30, dtype=torch.float64).mul_(3).requires_grad_()
    student = Outputs(states, targets, 30)
    teacher = Outputs(torch.randn(2, 5, 30, dtype=torch.float64) * 3, targets, 30)
    mix = Mix(1.0, 2.0, kind)  # type: ignore[arg-type]
    live, whole = (losses_beside(student, t, own, mix).rows for t in (Live(teacher), top_k(teacher, 2.0, 99)))
    assert torch.allclose(live, whole, rtol=1e-9)
    ours, theirs = (torch.autograd.grad(x.sum(), states)[0] for x in (whole, live))
    assert torch.allclose(ours, theirs, atol=1e-9)

    some = losses_beside(student, top_k(teacher, 2.0, 4), own, mix).divergence
    p, q = (x.softmax(-1) for x in (teacher.states / 2, states.detach() / 2))
    ids = p.topk(4).indices
    p, q = (torch.cat([x.gather(2, ids), 1 - x.gather(2, ids).sum(2, keepdim=True)], 2) for x in (p, q))
    expected = divergence(p.log().flatten(0, 1), q.log().flatten(0, 1), kind).view(2, 5) * (targets >= 0)  # type: ignore[arg-type]
    assert torch.allclose(some, expected.sum(1), rtol=1e-9)


def test_classes_that_the_student_lacks_are_padding() -> None:
    torch.manual_seed(0)
    targets = torch.zeros(1, 2, dtype=torch.long)
    wide = torch.randn(1, 2, 9, dtype=torch.float64)
    wide[..., 6:] = -1e4  # places that rows of another width have
    student = Outputs(torch.randn(1, 2, 6, dtype=torch.float64), targets, 6)
    mix = Mix(1.0, 1.0, "forward_kl")
    narrow = losses_beside(student, Live(Outputs(wide[..., :6], targets, 6)), own, mix).rows
    assert torch.allclose(losses_beside(student, top_k(Outputs(wide, targets, 9), 1.0, 9), own, mix).rows, narrow)
    number = TopK(torch.tensor([[[2.0]]]), torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 1))
    said = Outputs(torch.tensor([[[0.5]]]), torch.tensor([[1.0]]), 1)
    squared = losses_beside(said, number, lambda logits, targets: logits[:, 0] * 0, mix).rows
    assert squared.tolist() == [2.25]


def test_consecutive_positions_are_read_together() -> None:
    assert list(stretches(np.arange(3))) == [(0, 3)]
    assert list(stretches(np.array([1, 2, 7, 8, 20]))) == [(1, 3), (7, 9), (20, 21)]


def test_a_flipped_bit_is_told_wherever_it_is(tmp_path: Path) -> None:
    arrays = {"labels": np.arange(24).reshape(4, 6)}
    known = {"format": FORMAT, "teacher": "a1", "temperature": 2.0, "k": 3, "made_of": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(known))
    cache = TeacherCache(tmp_path)
    torch.manual_seed(0)
    teacher = Outputs(torch.randn(4, 6, 9), torch.from_numpy(arrays["labels"]), 9)
    cache.add([top_k(teacher, 2.0, 3)], [row_digests(arrays).astype(np.int64)])
    assert cache(np.arange(4), arrays)["teacher_values"].shape == (4, 6, 3)
    part = cache.parts[0].file
    whole = part.read_bytes()
    for bit in range(0, 8 * len(whole), 61):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        part.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            TeacherCache(tmp_path)(np.arange(4), arrays)
    part.write_bytes(whole)
    for other in ({"teacher": "a0"}, {"temperature": 3.0}, {"k": 2}):
        (tmp_path / "manifest.json").write_text(json.dumps(known | other))
        with pytest.raises(UserError, match="is damaged"):
            TeacherCache(tmp_path)(np.arange(4), arrays)
    (tmp_path / "manifest.json").write_text(json.dumps(known | {"temperature": "hot"}))
    with pytest.raises(UserError, match="has no manifest of a cache of this version"):
        TeacherCache(tmp_path)


@pytest.mark.slow
def test_students_beside_a_cache_learn_as_beside_the_live_teacher(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, cache, short = tmp_path / "teacher", tmp_path / "cache", tmp_path / "short"
    flags = [*tiny, *shlex.split("--objective masked_lm --model.model_type bert --model.hidden_dropout_prob 0")]
    flags += shlex.split("--model.attention_probs_dropout_prob 0 --max_steps 4")
    assert train([*flags, "--max_steps", "1"], teacher) == 0
    flags += ["--distill.temperature", "2"]
    capsys.readouterr()
    make = ["distill-cache", *flags, "--distill.teacher", str(teacher), "--top_k", "512", "--out"]
    assert sslm([*make, str(cache)]) == 0
    assert sslm([*make, str(short), "--max_steps", "2", "--micro_batch_size", "3"]) == 0
    assert sslm(["train", *flags, "--run_dir", str(tmp_path / "no"), "--distill.cache", str(short)]) == 2
    assert "has 8 examples, and this run takes 16" in capsys.readouterr().err
    (short / ".part-8.new").write_text("of a command that was killed")
    assert sslm([*make, str(short), "--micro_batch_size", "3"]) == 0  # goes on
    assert len(list(short.iterdir())) == 3
    first, *_ = TeacherCache(cache).parts
    parts = [load_file(part.file) for part in TeacherCache(short).parts]
    for name, array in load_file(first.file).items():
        assert np.allclose(array, np.concatenate([part[name] for part in parts]), atol=1e-5)

    live, beside = tmp_path / "live", tmp_path / "beside"
    assert train([*flags, "--distill.teacher", str(teacher)], live) == 0
    assert train([*flags, "--distill.cache", str(cache), "--stop_after", "2steps"], beside) == 75
    fsdp = shlex.split("--strategy fsdp --devices 2 --micro_batch_size 1 --data.num_workers 1")
    assert train([*flags, "--distill.cache", str(short), *fsdp], beside) == 0
    assert losses_of(beside) == pytest.approx(losses_of(live), abs=1e-5)

    capsys.readouterr()
    for other, says in (
        ("--seed 1", "is of another stream (seed was 0, is 1)"),
        ("--distill.temperature 1", "is of temperature 2; give --distill.temperature 2"),
        (f"--distill.teacher {live}", "is of another teacher; leave --distill.teacher out"),
    ):
        asked = ["train", *flags, "--run_dir", str(tmp_path / "no"), "--distill.cache", str(cache)]
        assert sslm([*asked, *shlex.split(other)]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    assert sslm([*make, str(cache), "--top_k", "5"]) == 2
    assert "is a cache of something else (k was 512, is 5)" in capsys.readouterr().err
    first.file.write_bytes(first.file.read_bytes()[:-100])
    capsys.readouterr()
    assert sslm(["train", *flags, "--run_dir", str(tmp_path / "no"), "--distill.cache", str(cache)]) == 2
    assert f"{first.file}: is damaged" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_run_whose_shard_was_replaced_goes_on_beside_the_live_teacher(
    tiny: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, cache, run = tmp_path / "corpus", tmp_path / "cache", tmp_path / "run"
    cut = ["--tokenizer", "bpe:512", "--shard_tokens", "20000"]
    assert sslm(["prepare", str(text), "--out", str(corpus), *cut]) == 0
    flags = [*tiny, "--data.train", str(corpus), "--data.on_bad_shard", "substitute", "--checkpoint.every_steps", "1"]
    teacher = ["--distill.teacher", str(tmp_path / "teacher")]
    assert main([*flags, "--run_dir", teacher[1], "--max_steps", "1"]) == 0
    made = ["distill-cache", *flags, *teacher, "--out"]
    assert sslm([*made, str(cache)]) == 0
    flip(corpus / "train-00001.bin")
    capsys.readouterr()
    for _ in range(2):
        assert main([*flags, "--run_dir", str(run), "--distill.cache", str(cache)]) == 2
        assert "a bad shard was replaced" in capsys.readouterr().err
    assert main([*flags, "--run_dir", str(run), *teacher]) == 0
    assert len(losses_of(run)) == 8
    assert sslm([*made, str(tmp_path / "other")]) == 2
    assert "train-00001.bin: is not what it was when it was prepared" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def train(flags: list[str], run: Path) -> int:
    done = train_forked([*flags, "--run_dir", str(run)], run.with_name(f"{run.name}.log"))
    assert done.returncode in (0, 2, 75), done.stdout
    return done.returncode
