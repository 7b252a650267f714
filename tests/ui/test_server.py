"""sslm ui's server, asked over HTTP: what it tells, what it refuses, and how it ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import sslm.ui.answers as answers
from sslm.cli.ui import main, ssh_hint
from sslm.runs.folder import RunFolder
from sslm.ui.server import STATIC, Server
from tests.support.written_runs import append_rows, row_of, write_run

STRANGE = "</script><script>alert(1)</script>\u202egnp\x00\x1b[31m \ud800 𝄞"


class Client:
    """Asks the server of some run folders as a browser on this machine would."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def json(self, path: str) -> Any:
        answer, content = self.ask(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        return json.loads(content, parse_constant=pytest.fail)  # browsers know no NaN


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.server_address[1])


def test_runs_are_named_by_number_and_those_that_begin_later_come_behind(client: Client, runs: Path) -> None:
    (runs / "a/status.json").write_text('{"state": "done", "step": 4, "reason": "all steps are done"}')
    (runs / "b<i>/status.json").write_text('{"state": "runn')
    first, second = client.json("/runs")["runs"]
    assert (first["name"], first["status"]["state"], second["name"], second["status"]) == ("a", "done", "b<i>", {})
    write_run(runs / "_later")
    assert [run["name"] for run in client.json("/runs")["runs"]] == ["a", "b<i>", "_later"]
    assert len(client.json("/rows?run=2")["rows"]) == 6


def test_only_new_rows_are_sent_and_all_of_them_once_the_run_went_back(client: Client, runs: Path) -> None:
    first = client.json("/rows?run=0")
    assert (len(first["rows"]), first["is_new"], first["more"]) == (6, True, False)
    append_rows(runs / "a", row_of(5), row_of(6))
    with open(runs / "a/metrics.jsonl", "a") as stream:
        stream.write('{"step": 7, "tok')
    second = client.json(f"/rows?run=0&after={first['mark']}")
    assert ([row["step"] for row in second["rows"]], second["is_new"]) == ([5, 6], False)
    RunFolder(runs / "a").drop_metrics_after(5)
    append_rows(runs / "a", row_of(6) | {"train/loss": 9.0}, row_of(7) | {"train/loss": 9.0})
    third = client.json(f"/rows?run=0&after={second['mark']}")
    assert ([row["step"] for row in third["rows"]], third["is_new"]) == ([0, 1, 2, 3, 4, 4, 5, 6, 7], True)
    append_rows(runs / "a", row_of(8))
    assert [row["step"] for row in client.json(f"/rows?run=0&after={third['mark']}")["rows"]] == [8]
    RunFolder(runs / "a").drop_metrics_after(7)  # a resume: the file is another, and its rows are those
    assert not client.json(f"/rows?run=0&after={third['mark']}")["is_new"]
    (runs / "a/metrics.jsonl").unlink()
    assert client.json(f"/rows?run=0&after={third['mark']}")["rows"] == []


def test_many_rows_come_in_parts(client: Client, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 150)
    parts = [client.json("/rows?run=0")]
    while parts[-1]["more"]:
        parts.append(client.json(f"/rows?run=0&after={parts[-1]['mark']}"))
    assert len(parts) > 2
    assert [row for part in parts for row in part["rows"]] == RunFolder(runs / "a").rows()


def test_broken_rows_and_strange_texts_come_as_json(client: Client, runs: Path) -> None:
    with open(runs / "a/metrics.jsonl", "ab") as stream:
        stream.write(
            b'{"step": 5, "tokens": 500, "train/loss": NaN, "grad_norm": 1e999}\n\xff\x00\n[1]\n{"step": "6"}\n'
        )
        stream.write(json.dumps({"step": 6, "tokens": 600, "samples": [STRANGE]}).encode() + b"\n")
    *_, broken, strange = client.json("/rows?run=0")["rows"]
    assert broken == {"step": 5, "tokens": 500, "train/loss": None, "grad_norm": None}
    assert strange["samples"] == [STRANGE]
    append_rows(
        runs / "a", {"step": 3, "kind": "loss is nan", "action": "rewind"}, {"step": None}, name="anomalies.jsonl"
    )
    assert client.json("/rows?run=0")["anomalies"] == [{"step": 3, "kind": "loss is nan", "is_rewind": True}]


def test_a_pipe_in_a_files_place_holds_nobody_up(client: Client, runs: Path) -> None:
    for name in ("config.yaml", "status.json", "anomalies.jsonl", "metrics.jsonl"):
        (runs / "a" / name).unlink(missing_ok=True)
        os.mkfifo(runs / "a" / name)
    assert client.json("/runs")["runs"][0]["status"] == {}
    assert client.json("/settings?run=0") == {}
    assert client.json("/rows?run=0")["rows"] == []


def test_settings_have_their_flags_names_and_no_secrets(client: Client, runs: Path) -> None:
    (runs / "a/config.yaml").write_text("optim: {lr: 0.1}\nseed: null\ndata: {train: 'https://me:secret@host/x'}\n")
    assert client.json("/settings?run=0") == {"optim.lr": "0.1", "seed": "", "data.train": "https://host/x"}
    assert client.json("/settings?run=1") == {}


OUTSIDE = ["/../secret", "/..%2fsecret", "/%2e%2e/secret", "//etc/passwd", "/static/ui.js", "/ui.js/", "/a", "/C:\\"]
NO_RUNS = ["2", "-1", "../secret", "..%2f", "a", "", "0x0", "٠", "0\0", "1" * 5000]
NOWHERE = [*OUTSIDE, *(f"/{what}?run={quote(run)}" for what in ("rows", "settings") for run in NO_RUNS)]


@pytest.mark.parametrize("path", NOWHERE)
def test_no_path_leads_anywhere(client: Client, runs: Path, path: str) -> None:
    (runs.parent / "secret").write_text("for nobody")
    answer, content = client.ask(path)
    assert answer.status == 404
    assert content == b"Not Found\n"


@pytest.mark.parametrize("path", ["/rows?" + "a=1&" * 50, "/" + "a" * 70_000])
def test_what_no_page_asks_is_refused(client: Client, path: str) -> None:
    assert client.ask(path)[0].status in (400, 414)


@pytest.mark.parametrize("mark", ["../../etc/passwd", "99999999999-" + "0" * 64, "5-" + "0" * 64, "-1", "%00", "1-2"])
def test_a_made_up_mark_gets_all_rows(client: Client, mark: str) -> None:
    answer = client.json(f"/rows?run=0&after={mark}")
    assert (len(answer["rows"]), answer["is_new"]) == (6, True)


def test_only_reading_and_only_this_machines_names_are_answered(client: Client) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert client.ask("/runs", method)[0].status == 405
    assert client.ask("/runs", "BREW")[0].status == 501
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "localhost.evil.example"):
        assert client.ask("/runs", Host=host)[0].status in (400, 403), host
    for host in ("localhost:9", "127.0.0.1", "[::1]:8666", socket.gethostname()):
        assert client.ask("/runs", Host=host)[0].status == 200, host
    head, content = client.ask("/", "HEAD")
    assert (head.status, content, int(head.headers["Content-Length"]) > 0) == (200, b"", True)


def test_the_page_may_load_its_own_two_files_and_nothing_else(client: Client) -> None:
    for path in ("/", "/ui.js", "/ui.css", "/runs", "/nowhere"):
        answer, content = client.ask(path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert b"http" not in content.replace(b"http-equiv", b"")
    script = (STATIC / "ui.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert word not in script


def test_a_taken_port_is_one_sentence(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(runs), "--port", str(port)]) == 2
    assert f"--port {port}: can't listen there (Address already in use); give another port" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_0_and_the_way_through_ssh_is_told(runs: Path) -> None:
    command = [sys.executable, "-m", "sslm", "ui", str(runs), "--port", "0"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job has it ignored, and its children
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout
    said = [process.stdout.readline(), process.stdout.readline()]
    assert said[0] == "2 runs, to look at until Ctrl-C:\n"
    port = int(said[1].strip().rstrip("/").rpartition(":")[2])
    assert Client(port).ask("/")[0].status == 200
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    hint = ssh_hint("10.0.0.9 50000 10.0.0.1 2222", port)
    assert hint
    assert hint.startswith(f"ssh -N -L {port}:localhost:{port} -p 2222 ")
    assert hint.endswith("@10.0.0.1")
    assert ssh_hint("", port) is None
