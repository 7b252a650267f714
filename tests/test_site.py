"""The site of `make docs`: it has every page, flag and public name, and no link of it leads nowhere."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslm
from sslm.cli.parse import flag_parser
from sslm.config import FLAGS
from tests.support import browsers
from tests.support.processes import run_command

ROOT = Path(__file__).parent.parent


@pytest.fixture
def make_site(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_site

    yield make_site
    del sys.modules["make_site"]


def test_every_page_is_in_the_navigation(make_site) -> None:
    listed = set(re.findall(r'= "([\w/]+\.md)"', (ROOT / "zensical.toml").read_text()))
    assert tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["theme"]["font"] is False
    pages = {str(page.relative_to(ROOT)) for pattern in make_site.SOURCES for page in ROOT.glob(pattern)}
    assert listed == {page for page in pages if page.endswith(".md")} | {"flags.md", "api.md"}


def test_every_flag_and_every_public_name_has_its_place(make_site) -> None:
    flags = "\n".join(make_site.tables(flag_parser()))
    for name in FLAGS:
        assert f"\n| `--{name.removesuffix('.name') if name == 'objective.name' else name}` | " in flags, name
    names = set(re.findall(r"^::: ([\w.]+)$", "\n".join(make_site.api_page()), re.MULTILINE))
    public = [name.rpartition(".")[2] for name in names - set(make_site.TAKEN)]
    assert sorted([*public, "__version__"]) == sorted(sslm.__all__)


def test_links_that_lead_nowhere_and_servers_are_told(make_site, tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<h2 id="there">')
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="other.html#there"><a href="other.html#gone"><a href="gone.html"><a href="https://a.b/c">'
        '<script src="https://a.b/c.js">'
    )
    assert list(make_site.wrong_in(page)) == [
        "loads https://a.b/c.js",
        "other.html#gone: there is no such place",
        "gone.html: there is no such file",
    ]


@pytest.fixture(scope="module")
def site() -> Path:
    """The folder of the whole site."""
    pytest.importorskip("zensical", reason="needs zensical: pip install 'sslm[docs]'")
    said = run_command([str(ROOT / "docs/make_site.py")], timeout=120).stdout
    assert "every link leads somewhere" in said
    return ROOT / "site"


@pytest.mark.slow
def test_the_site_is_built_and_all_its_links_lead_somewhere(site: Path) -> None:
    flags = (site / "flags.html").read_text()
    for words in ("--optim.lr", "--objective.ratio", "sslm ckpt reshard", "--shards N", "sslm generate"):
        assert words in flags, words
    assert 'id="sslm.objectives.causal_lm.CausalLM"' in (site / "api.html").read_text()


@pytest.mark.slow
def test_the_search_needs_no_server(site: Path) -> None:
    """It is opened from the disk."""
    with browsers.opened() as browser:
        page = browser.new_page()
        page.goto((site / "index.html").as_uri())
        page.get_by_role("button", name="Search").first.click()
        page.keyboard.type("reshard")
        page.get_by_role("option", name="sslm ckpt reshard").first.click(timeout=10_000)
        page.wait_for_url("**/flags.html?h=reshard#sslm-ckpt-reshard")
