"""Languages by a model in the wheel, scripts by Unicode's names."""

import subprocess
import sys
import time

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning import languages
from sslm.data.cleaning.languages import detect, script_of, script_shares
from sslm.system.errors import UserError

SENTENCES = {
    "ar": "تعلمت النماذج اللغوية من نصوص كثيرة على الشبكة",
    "cs": "Jazykové modely se učí z velkého množství textů na internetu.",
    "de": "Sprachmodelle lernen aus sehr vielen Texten, die im Netz stehen.",
    "el": "Τα γλωσσικά μοντέλα μαθαίνουν από πολλά κείμενα στο διαδίκτυο.",
    "en": "Language models learn from very many texts that are on the web.",
    "es": "Los modelos de lengua aprenden de muchísimos textos de la red.",
    "fa": "مدل‌های زبانی از متن‌های بسیار زیادی در وب می‌آموزند",
    "fi": "Kielimallit oppivat hyvin monista teksteistä, joita verkossa on.",
    "fr": "Les modèles de langue apprennent de très nombreux textes du web.",
    "hi": "भाषा मॉडल इंटरनेट पर मौजूद बहुत सारे पाठों से सीखते हैं।",
    "it": "I modelli linguistici imparano da moltissimi testi che sono in rete.",
    "ja": "言語モデルはウェブ上のとても多くの文章から学びます。",
    "ko": "언어 모델은 웹에 있는 아주 많은 글에서 배웁니다.",
    "nl": "Taalmodellen leren van heel veel teksten die op het web staan.",
    "pl": "Modele językowe uczą się z bardzo wielu tekstów w sieci.",
    "ru": "Языковые модели учатся на очень многих текстах из сети.",
    "sv": "Språkmodeller lär sig av väldigt många texter som finns på nätet.",
    "th": "แบบจำลองภาษาเรียนรู้จากข้อความจำนวนมากบนเว็บ",
    "tr": "Dil modelleri internetteki çok sayıda metinden öğrenir.",
    "uk": "Мовні моделі навчаються на дуже багатьох текстах із мережі.",
    "vi": "Các mô hình ngôn ngữ học từ rất nhiều văn bản trên mạng.",
    "zh": "语言模型从网络上的大量文本中学习。",
}


def test_sentences_of_many_languages_are_told() -> None:
    found = detect(list(SENTENCES.values()))
    assert [language for language, _ in found] == list(SENTENCES)
    assert all(0.3 < score <= 1 for _, score in found)


def test_a_text_is_told_alone_as_among_others_and_by_its_letters() -> None:
    odd = ["", "123 + 456", "\ud83d", "\n\n", "🎉🎉", *SENTENCES.values(), "LANGUAGE MODELS LEARN FROM VERY MANY TEXTS"]
    assert detect(odd) == [detect([text])[0] for text in odd]
    assert detect(odd[:5]) == [("und", 0.0)] * 5
    assert detect(odd)[-1][0] == "en"
    menu = "Home | About | Contact\n" * 40
    assert detect([menu + f"{SENTENCES['de']}\n" * 100])[0][0] == "de"


def test_long_texts_cost_no_more_than_what_is_read_of_them() -> None:
    detect(["warm"])
    before = time.process_time()
    detect(["a" * 10_000_000, "\ud83d" * 1_000_000, "é " * 1_000_000])
    assert time.process_time() - before < 2


def test_nothing_is_asked_of_a_network() -> None:
    program = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        raise SystemExit(f"network: {event}")
sys.addaudithook(hook)
from sslm.data.cleaning.languages import detect
assert detect(["Bonjour tout le monde, voici un texte."])[0][0] == "fr"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shares_of_scripts() -> None:
    assert script_shares("Ελλάδα Россия") == {"Greek": 0.5, "Cyrillic": 0.5}
    assert list(script_shares("日本語のテキスト")) == ["Katakana", "Han", "Hiragana"]
    assert script_shares("123 …\n\ud83d") == {}
    of_languages = {language: next(iter(script_shares(text))) for language, text in SENTENCES.items()}
    assert set(of_languages.values()) == {
        *("Arabic", "Latin", "Greek", "Devanagari", "Hiragana", "Hangul", "Cyrillic", "Thai", "Han")
    }


@given(st.text(max_size=50))
def test_shares_are_of_all_letters(text: str) -> None:
    shares = script_shares(text)
    letters = [char for char in text if char.isalpha()]
    assert sum(shares.values()) == pytest.approx(1 if letters else 0)
    for script, share in shares.items():
        assert share == sum(script_of(char) == script for char in letters) / len(letters)


def test_scripts_are_unicodes() -> None:
    """By the tables of the package regex."""
    for first, last, script in ((0x41, 0x24F, "Latin"), (0x400, 0x52F, "Cyrillic"), (0x4E00, 0x9FFF, "Han")):
        letters = [char for char in map(chr, range(first, last)) if char.isalpha()]
        wrong = [char for char in letters if (script_of(char) == script) != bool(regex.match(rf"\p{{{script}}}", char))]
        assert set(wrong) <= {"ª", "º"}  # their names are what they are for
        assert len(letters) > 200


def test_without_the_package_a_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    languages._predictor.cache_clear()
    monkeypatch.setattr(languages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sslm\[clean\]'"):
        detect(["text"])
