"""Markup, navigation and rows of symbols go; text and code stay."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning.denoise import EDITORS, markup, navigation, symbol_lines

CODE = """\
if a < b and c > d || e<f && g>h: return a<b>c
std::vector<int> v; std::map<std::string, List<A>> m; List<P> p; f<i>(x); template <class T>
#include <map>
#include <time.h>
int a[2][2] = {{1, 2}, {3, 4}}; char *p = &sum; q = &copy; if [[ -f x ]]; then y; fi
handlers[name](event); a = b[i](j); x[0](1)
filename="<input>" and (?P<source>x)
f"{{{a}}}" {{ jinja.variable }} ''' and '''
"Eq": "==",
r'([\\d\\.]+)'
}});
| a | b |
|---|:--|
+---+---+
---
Home
The menu has | About | Contact.
\ttab\tseparated\tvalues
"""


@pytest.mark.parametrize("name", EDITORS)
def test_code_and_tables_stay(name: str) -> None:
    assert EDITORS[name](CODE) == CODE
    fenced = "```html\n<p class='a'>&amp;<br>\nHome | About | Contact\n~*~*~*~*~*~*~*\n```\n"
    assert EDITORS[name](f"see\n{fenced}end\n") == f"see\n{fenced}end\n"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a <b>bold</b> and <i>so</i> on<br/>next", "a bold and so on\nnext"),
        ('<a href="x.html" target=_blank>link</a>', "link"),
        ("<div class='a'><p>one<p>two</div>", "\n\none\ntwo\n"),
        ("<ul>\n<li>x\n</ul>", "\n\n\nx\n\n"),
        ("<tr><td>a</td><td>b</td></tr>", "\n a  b \n"),
        ("a<!-- <b>hidden</b> - -->b", "ab"),
        ("<script type='x'>if (a<b) { c(); }</script>t<style>p {}</style>", "t"),
        ("<!DOCTYPE html><html lang=en>t</html>", "\nt\n"),
        ("&lt;b&gt; &amp;amp; &#228;&#xE4; &eacute;&mdash;&euro; &nosuch; &c", "<b> &amp; ää é—€ &nosuch; &c"),
        ("use `<b>` for <b>this</b>", "use `<b>` for this"),
        ('![a cat](cat.png) [here](https://x.org/a_(b) "t") [y](#z) [f](x)', "a cat here y [f](x)"),
        ("[![badge](a.svg)](https://x.org)", "badge"),
        (
            "'''Foo''' is a [[bar|baz]] {{cite|a={{b}}}}.<ref name=x>y</ref>\n== See ==\n[[File:a.jpg|thumb|of [[x]]]]",
            "Foo is a baz .\nSee\n",
        ),
        ("[[a]] '''b'''\n{| class=x\n|-\n| c\n|}\nd", "a b\n\nd"),
    ],
)
def test_markup_goes_and_what_people_read_stays(text: str, seen: str) -> None:
    assert markup(text) == seen


@pytest.mark.parametrize(
    "lines",
    [
        ["Home | About us | Contact"],
        ["Home > Products > Our New Shoes"],
        ["Home", "", "About", "Contact"],
        ["• Blog", "• FAQ • Support"],
        ["Startseite · Impressum · Datenschutz"],
        ["Skip to content"],
        ["« Previous Next »"],
        ["Next →"],
        ["[Back to top]"],
        ["We use cookies to improve your experience. By continuing, you accept our policy."],
        ["This website uses cookies."],
        ["Diese Seite verwendet Cookies."],
    ],
)
def test_navigation_goes(lines: list[str]) -> None:
    text = "\n".join(["Some text.", *lines, "More text."])
    assert navigation(text) == "\n".join(["Some text.", *[line for line in lines if not line], "More text."])


@pytest.mark.parametrize(
    "line",
    [
        "Home",
        "# Contact",
        "Next",
        "Alice | Bob | Carol",
        "| Home | About | Contact |",
        "The shop, the blog and the forum | all of them | are here",
        "We baked cookies, and use butter.",
        "She said: skip to content that you like.",
        "Help! Search for the next menu.",
    ],
)
def test_what_may_be_text_stays(line: str) -> None:
    text = f"Some text.\n{line}\nMore text."
    assert navigation(text) == text


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("~*~*~*~*~*~*~", False),
        ("==========", False),
        ("★★★★★ ☆☆☆☆☆ !!", False),
        ("▄▄▄▄ ████ ░░░░ a", False),
        ("---", True),
        ("*** Chapter 12 ***", True),
        ("हिन्दी में लिखा हुआ", True),
        ("ประโยคภาษาไทย", True),
        ("漢字、かな。", True),
        ("f(x) = (a + b) / (c - d)", True),
        ("...... 1 ......", False),
    ],
)
def test_lines_of_symbols_go(line: str, stays: bool) -> None:
    assert symbol_lines(f"a\n{line}\nb") == (f"a\n{line}\nb" if stays else "a\nb")


@pytest.mark.parametrize("name", ["navigation", "symbol_lines"])
@given(
    text=st.lists(
        st.sampled_from(["Home", "About|FAQ", "a", "", "Next »", "==========", "```", "~~~ x", "`", "Skip to content"])
        | st.text("a=| -\u00e9*`", max_size=15)
    ).map("\n".join)
)
def test_lines_go_once_and_the_others_stay_in_order(name: str, text: str) -> None:
    once = EDITORS[name](text)
    assert EDITORS[name](once) == once
    lines = iter(text.split("\n"))
    assert all(line in lines for line in once.split("\n") if line)


@pytest.mark.parametrize("name", EDITORS)
def test_no_text_takes_longer_than_its_length_explains(name: str) -> None:
    units = ["<", "<a ", "<b>", "</b>", "<p>", "<a href='", "<script>", "<style ", "<!--", "<!-- -", "&", "&amp", "[["]
    units += [
        "{{",
        "{{a",
        "{|",
        "{|a|",
        "[",
        "![",
        "[a](",
        "[a](http://",
        "[a](/(",
        "<ref>",
        "`",
        "```\n",
        "~~~\n",
        "\n",
    ]
    units += ["''", "\n==", "\n== a ", " ", "|", "home|", "*", "* ", "- ", "We use ", "cookie ", "<?xml", "\ud83d"]
    for unit in units:
        for start in ("", "[[a]] {{b}} </b> "):
            before = time.process_time()
            EDITORS[name](start + unit * (50_000 // len(unit)))
            assert time.process_time() - before < 1, unit
