"""`sslm generate`, as a user types it."""

import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sslm.cli.generate import main
from sslm.cli.generate import prompts as prompts_module
from sslm.cli.generate.chat import Chat
from sslm.cli.generate.conversation import reply
from sslm.cli.generate.flags import parsed
from sslm.cli.generate.prompts import read
from sslm.cli.generate.tasks import Settings, SpanFilling, pieces_of, task_class
from sslm.cli.generate.texts import Texts, beginning
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.stream.vocabulary import SpecialTokens, extended
from sslm.models.build import build
from sslm.models.generation.draws import Sampling
from sslm.runs.trained import open_trained
from sslm.system.errors import UserError
from tests.support.processes import Ranks
from tests.support.runs import TrainTiny

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "bert": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2},
}
KINDS = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM", "bart": "AutoModelForSeq2SeqLM"}
SOME = "The statement, e\u0301 שלום 你好 😀"
Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folders(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Hugging Face folder of each kind of model."""
    there = tmp_path_factory.mktemp("models")
    plain = train_bpe([(text.read_text(), True)], 400)
    needs = {"t5": SpecialTokens(pad=True, sentinels=5), "llama": SpecialTokens()}
    for model_type, sizes in SIZES.items():
        tokenizer = extended(plain, needs.get(model_type, SpecialTokens(pad=True, mask=True)))
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        ids |= {"decoder_start_token_id": tokenizer.eos_token_id} if model_type in ("t5", "bart") else {}
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ids)
        model = build(config, KINDS.get(model_type, "AutoModelForCausalLM"), 0)
        for n, parameter in enumerate(model.parameters()):
            torch.nn.init.normal_(parameter, 0, 0.3 * (parameter.ndim > 1), torch.Generator().manual_seed(n))
        model.save_pretrained(there / model_type)
        tokenizer.save_pretrained(there / model_type)
    return there


@pytest.fixture
def generate(folders: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """generate(model, *flags) -> exit code, stdout, stderr."""

    def run(model: str, *flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(folders / model), "--max_new_tokens", "6", *flags])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def prompts(folder: Path, *texts: Any) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text} if isinstance(text, str) else text) + "\n" for text in texts))
    return str(file)


def rows(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def test_greedy_text_is_that_of_plain_transformers(folders: Path, generate: Generate) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders / "llama")
    model = AutoModelForCausalLM.from_pretrained(folders / "llama")
    ids = tokenizer(SOME, return_tensors="pt")
    wanted = tokenizer.decode(model.generate(**ids, max_new_tokens=6, pad_token_id=0)[0], skip_special_tokens=True)
    assert generate("llama", "--prompt", SOME, "--temperature", "0") == (0, wanted + "\n", "")


@pytest.mark.parametrize("flags", ["--seed 3", "--temperature 0", "--num_beams 2"])
def test_rows_are_alike_in_any_batch_and_streamed_text_is_theirs(
    generate: Generate, tmp_path: Path, flags: str
) -> None:
    file = prompts(tmp_path, *("", SOME, "a", {"prompt": "x" * 50, "id": 7}))
    said = [generate("llama", "--prompts", file, "--batch_size", size, "--logprobs", *flags.split()) for size in "13"]
    assert said[0] == said[1]
    found = rows(said[0][1])
    assert [row["prompt"] for row in found] == ["", SOME, "a", "x" * 50]
    assert list(found[3]) == ["prompt", "id", "text", "tokens", "finish_reason", "logprobs"]
    assert all(len(row["logprobs"]) == len(row["tokens"]) for row in found)
    assert generate("llama", "--prompt", "", *flags.split())[1] == found[0]["text"] + "\n"


def test_masks_and_spans_are_put_into_the_text_as_it_was_typed(generate: Generate) -> None:
    for mark in ("<fill>", "<fill:3>", "<mask>"):
        for how in ("iterative", "one_pass"):
            code, said, _ = generate("bert", "--prompt", f"{SOME} {mark}, and  so", "--fill", how)
            assert code == 0
            assert said.startswith(SOME)
            assert said.endswith(", and  so\n")
            assert len(said) > len(f"{SOME}, and  so\n")
    code, said, _ = generate("t5", "--prompt", f"{SOME} <fill>, and  so<fill>.")
    assert code == 0
    assert said.startswith(SOME)
    assert said.endswith(".\n")
    assert generate("bart", "--prompt", f"{SOME} <fill>")[0] == 0


def test_a_span_models_text_goes_to_its_sentinels_places(folders: Path) -> None:
    trained = open_trained(str(folders / "t5"))
    task = span_task(trained)
    sentinels, ids = task.sentinels, task.texts.encode
    given = typed("One <fill> three <fill>five")
    assert task.prompt(given).ids[:2] == [*ids("One"), sentinels[0]][:2]
    answer = task.answer([given])[0]._replace(tokens=[sentinels[0], *ids(" two"), sentinels[1], *ids(" four "), 0])
    assert task._filled(given, answer).text == "One two three four five"
    run = span_task(trained._replace(settings={"data": {}}))
    assert run.prompt(typed("One")).ids == [*ids("One"), sentinels[0], run.texts.end]
    assert run._filled(typed("One"), answer).text == " two"
    assert run.echoes(typed("One"))
    with pytest.raises(UserError, match="6 times <fill>, and the model 5 sentinels"):
        task.prompt(typed("<fill>" * 6))


def typed(prompt: str) -> Any:
    return prompts_module.typed(prompt)[0]


def span_task(trained: Any) -> SpanFilling:
    assert task_class(trained) is SpanFilling
    return SpanFilling(trained, Texts(trained, "plain", "document"), Settings(Sampling(), 6, 1, [], True))


def test_what_was_fine_tuned_gets_its_sources_as_in_training(folders: Path) -> None:
    objective = {"name": "text_to_text", "prefix": "de: ", "separator": " =>"}
    for name, frame in (("llama", "de: Haus =>"), ("t5", "de: Haus")):
        trained = open_trained(str(folders / name))._replace(
            objective="text_to_text", settings={"objective": objective}
        )
        texts = Texts(trained, "plain", "document")
        task = task_class(trained)(trained, texts, Settings(Sampling(), 6, 1, [], True))
        assert task.prompt(typed("Haus")).ids == texts.encode(frame) + ([texts.end] if name == "t5" else [])
        assert not task.echoes(typed("Haus"))
    with pytest.raises(UserError, match="sslm predict"):
        task_class(trained._replace(objective="classification"))


def test_a_prompt_begins_as_a_document_in_training(train_tiny: TrainTiny, tmp_path: Path, generate: Generate) -> None:
    assert train_tiny(tmp_path / "run", "--max_steps", "1") == 0
    trained = open_trained(str(tmp_path / "run"))
    end = trained.tokenizer.eos_token_id
    assert beginning(trained, "document") == [end]
    assert beginning(trained, "template") == beginning(trained, "nothing") == []
    data = trained.settings["data"]
    apart = trained._replace(settings={"data": {**data, "document_mask": True}})
    assert beginning(apart, "document") == []
    assert generate(str(tmp_path / "run"), "--prompt", "")[0] == 0  # the end of another document, at least


def test_names_of_special_tokens_are_text_unless_they_are_to_be_parsed(folders: Path) -> None:
    trained, name = open_trained(str(folders / "llama")), "a<|endoftext|>"
    end = trained.tokenizer.eos_token_id
    assert end not in Texts(trained, "plain", "document").encode(name)
    assert Texts(trained, "parse", "document").encode(name)[-1] == end
    assert Texts(trained, "plain", "document").special_named(["a", "<|endoftext|>"]) == [end]
    assert Texts(trained, "plain", "document").decode(Texts(trained, "plain", "document").encode(name)) == name


def test_prompts_longer_than_the_model_are_cut_with_a_warning_or_refused(generate: Generate, tmp_path: Path) -> None:
    code, _, err = generate("llama", "--prompt", "a b " * 90)
    assert code == 0
    assert "181 tokens, and the model has 64 positions; its first 123 tokens are left out" in err
    assert err.count("\n") == 1
    code, _, err = generate("bert", "--prompt", "a b " * 90 + "<fill>")
    assert code == 2
    assert "shorten it" in err


def test_a_killed_file_is_whole_rows_and_the_same_command_goes_on(
    folders: Path, tmp_path: Path, generate: Generate
) -> None:
    file = prompts(tmp_path, *(f"{SOME} {n}" for n in range(24)))
    flags = ["--prompts", file, "--batch_size", "2", "--temperature", "1"]
    assert generate("llama", *flags, "--out", str(tmp_path / "whole.jsonl"))[0] == 0
    out = tmp_path / "out.jsonl"
    arguments = [str(folders / "llama"), "--max_new_tokens", "6", *flags, "--out", str(out)]
    ranks = Ranks(arguments, tmp_path / "log", verb=main)
    end = time.monotonic() + 60
    while time.monotonic() < end and (not out.is_file() or out.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    ranks.signal(signal.SIGKILL)
    ranks.wait()
    with out.open("ab") as stream:
        stream.write(b'{"prompt": "torn')  # as a kill in the middle of writing leaves it
    before = out.read_bytes().rpartition(b"\n")[0]
    assert 4 <= before.count(b"\n") + 1 < 24
    code, _, err = generate("llama", *flags[:-1], "0.5", "--out", str(out))
    assert code == 2
    assert "begun with another temperature" in err
    code, said, _ = generate("llama", *flags, "--out", str(out))
    assert code == 0
    assert "24 rows" in said
    assert out.read_bytes().startswith(before)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert generate("llama", *flags, "--out", str(out))[0] == 2  # it is complete
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has no prompts"),
        (b"\n \n", "has no prompts"),
        (b'{"prompt": "a"}\n{"prompt": 3}', "line 2: its prompt is 3; expected text"),
        (b'{"prompt": null}', "line 1: its prompt is null"),
        (b'{"promt": "a"}', "line 1: has no key prompt, but promt"),
        (b"{}", "line 1: has no key prompt"),
        (b'["a"]', "line 1: is list"),
        (b'{"prompt": "a", "x": NaN}', "line 1: has NaN, which is no JSON"),
        (b'{"prompt": "a"}\nhello', "line 2: is no JSON (hello)"),
        (b'{"prompt": "\xff"}', "line 1: is not UTF-8"),
        (b'{"prompt": "\\ud800"}', "line 1: its prompt has half a character"),
        (b'{"prompt": "a", "text": "b"}', "line 1: its key text is one that is written"),
        (b"[" * 100_000, "line 1: is no JSON"),
    ],
)
def test_a_hostile_line_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(file)
    assert sentence in str(error.value)


def test_what_is_no_fault_of_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a\\u0000\xe2\x80\xa8b", "x": [1]}\r\n\n{"prompt": ""}')
    assert [(one.prompt, one.number) for one in read(file)] == [("a\0\u2028b", 0), ("", 1)]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("", "a prompt is missing"),
        ("--prompt a --interactive", "--prompt and --interactive are given together"),
        ("--prompt a --temprature 1", "no flag --temprature (did you mean --temperature?)"),
        ("--prompt a --temperature -1", "--temperature: -1: expected a number, 0 or more"),
        ("--prompt a --temperature nan", "expected a number"),
        ("--prompt a --top_p 0", "--top_p: 0: expected a number, more than 0"),
        ("--prompt a --top_k 0", "--top_k: 0: expected a whole number from 1"),
        ("--prompt a --max_new_tokens 1.5", "expected a whole number"),
        ("--prompt a --num_beams 2 --top_k 3", "--num_beams and --top_k: beams are searched"),
        ("--prompt a --temperature 0 --min_p 0.1", "--min_p: nothing is drawn at --temperature 0"),
        ("--prompt a --system b", "--system: is a part of a chat"),
        ("--interactive --out x.jsonl", "--out: a conversation has no rows"),
    ],
)
def test_flags_that_are_wrong_are_told_in_a_sentence(flags: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(["model", *flags.split()])
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("model", "flags", "sentence"),
    [
        ("llama", ["--prompt", "a <fill> b"], "writes on and fills in nothing"),
        ("bert", ["--prompt", "a"], "has nothing to fill in; put <fill>, <fill:3> or <mask>"),
        ("bert", ["--prompt", "<fill:0>"], "<fill:0>: expected a number of tokens from 1 on"),
        ("bert", ["--prompt", "<fill>", "--num_beams", "2"], "--num_beams: "),
        ("t5", ["--prompt", "<fill:2>"], "the model decides how much it fills in; type <fill>"),
        ("llama", ["--prompt", "a", "--chat"], "has no chat template"),
        ("nothing", ["--prompt", "a"], "no model could be loaded"),
        ("llama", ["--prompts", "no.jsonl"], "there is no such file"),
    ],
)
def test_what_a_model_cant_do_is_told_in_a_sentence_and_nothing_written(
    generate: Generate, model: str, flags: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = generate(model, *flags, "--out", "out.jsonl")
    assert (code, out) == (2, "")
    assert not list(tmp_path.iterdir())
    assert sentence in err
    assert err.count("\n") == 1


def test_weights_that_are_no_numbers_are_told(folders: Path, tmp_path: Path, generate: Generate) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders / "llama")
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders / "llama").save_pretrained(tmp_path)
    code, _, err = generate(str(tmp_path), "--prompt", "a")
    assert code == 1
    assert "no numbers (NaN)" in err


def test_a_folders_generation_config_decides_nothing_but_ends(
    folders: Path, tmp_path: Path, generate: Generate
) -> None:
    plain = generate("llama", "--prompt", SOME, "--temperature", "0")
    AutoModelForCausalLM.from_pretrained(folders / "llama").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders / "llama").save_pretrained(tmp_path)
    hostile = {
        "max_length": 3,
        "repetition_penalty": 9.0,
        "num_beams": 4,
        "suppress_tokens": ["x"],
        "stop_strings": [" "],
    }
    ends = [10**12, -1, "x", None]
    config = {**hostile, "eos_token_id": ends, "bad_words_ids": 3, "forced_bos_token_id": 10**9, "use_cache": False}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert generate(str(tmp_path), "--prompt", SOME, "--temperature", "0") == plain


def chat_model(folders: Path, folder: Path, template: str) -> str:
    AutoModelForCausalLM.from_pretrained(folders / "llama").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folders / "llama")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_conversation_keeps_its_context(
    folders: Path, tmp_path: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    talking = chat_model(folders, tmp_path, template)
    said = {}
    for lines in ("One\n", "One\nTwo\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code, said[lines], _ = generate(talking, "--interactive", "--chat", "--system", "S")
        assert code == 0
    first = said["One\n"].rstrip("\n")
    assert said["One\nTwo\n"].startswith(first + "\n")
    _, plain, _ = generate(talking, "--prompt", "One", "--chat", "--system", "S")
    assert plain == first + "\n"


def test_a_model_that_fills_in_takes_each_line_by_itself(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("One <fill>.\nnothing\nThree <fill>!\n"))
    code, out, err = generate("bert", "--interactive")
    assert code == 0
    assert out.startswith("One")
    assert "!\n" in out
    assert "this line: has nothing to fill in" in err


def test_ctrl_c_ends_a_reply_and_what_was_written_of_it_stays(
    folders: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    trained = open_trained(str(folders / "llama"))
    texts = Texts(trained, "plain", "document")
    task = task_class(trained)(trained, texts, Settings(Sampling(1.0), 50, 1, [], True))
    whole = reply(task, typed(SOME))
    steps, forward = iter(range(100)), trained.model.forward

    def interrupted(**inputs: Any) -> Any:
        if next(steps) == 20:
            signal.raise_signal(signal.SIGINT)
        return forward(**inputs)

    trained.model.forward = interrupted  # type: ignore[method-assign]
    part = reply(task, typed(SOME))
    assert 0 < len(part) < len(whole)
    assert whole.startswith(part)
    assert capsys.readouterr().out == f"{whole}\n{part}\n"


def test_a_template_runs_in_a_sandbox_and_messages_write_no_special_tokens(
    folders: Path, tmp_path: Path, generate: Generate
) -> None:
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    code, _, err = generate(chat_model(folders, tmp_path / "a", hostile), "--prompt", "x", "--chat")
    assert code == 2
    assert "chat template" in err
    assert "SecurityError" in err
    template = "{{ messages[0].content }}<|endoftext|>"
    tokenizer = AutoTokenizer.from_pretrained(chat_model(folders, tmp_path / "b", template))
    assert Chat(tokenizer, "b", None)("<|endoftext|>").count(tokenizer.eos_token_id) == 1


def test_pieces_are_cut_at_marks_and_words_keep_their_space(folders: Path) -> None:
    task = span_task(open_trained(str(folders / "t5")))
    pieces = pieces_of(typed("a <fill>b<fill:2>  <fill>"), task.texts)
    assert [(piece.text, piece.num_missing, piece.space) for piece in pieces] == [
        ("a", None, " "),
        ("b", None, ""),
        (" ", 2, " "),
        ("", None, ""),
    ]
