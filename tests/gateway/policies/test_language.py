from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.policies.language import LANGUAGES, language

SENTENCES = {
    "en": "What is the best way to learn a new language in a short time?",
    "fr": (
        "Quelle est la meilleure fa\u00e7on de faire un g\u00e2teau pour les enfants dans la "
        "cuisine ?"
    ),
    "de": (
        "Wie kann ich die Datei mit dem Programm \u00f6ffnen, und was ist der Grund f\u00fcr "
        "den Fehler?"
    ),
    "es": "\u00bfCu\u00e1l es la mejor manera de aprender los verbos en una semana con el libro?",
    "it": "Come posso fare il pane in casa, e quali sono gli ingredienti della ricetta di nonna?",
    "pt": "Como posso fazer um bolo em casa e o que n\u00e3o devo usar para a massa?",
    "nl": "Hoe kan ik het bestand openen en wat is de reden van deze fout met het programma?",
    "pl": (
        "Jak mo\u017cna to zrobi\u0107 i czy jest to dobre dla dzieci, bo nie wiem co o tym m"
        "y\u015ble\u0107?"
    ),
    "sv": (
        "Hur kan jag \u00f6ppna filen och vad \u00e4r det som g\u00f6r att den inte fungerar "
        "p\u00e5 datorn?"
    ),
    "tr": (
        "Bu program i\u00e7in bir dosya nas\u0131l a\u00e7\u0131l\u0131r ve ne zaman daha h"
        "\u0131zl\u0131 olur, \u00e7ok mu zor?"
    ),
    "ru": (
        "\u041a\u0430\u043a \u043e\u0442\u043a\u0440\u044b\u0442\u044c \u044d\u0442\u043e"
        "\u0442 \u0444\u0430\u0439\u043b?"
    ),
    "uk": (
        "\u042f\u043a \u0432\u0456\u0434\u043a\u0440\u0438\u0442\u0438 \u0446\u0435\u0439 "
        "\u0444\u0430\u0439\u043b \u0456 \u0457\u0445\u043d\u0456 \u0434\u0430\u043d\u0456?"
    ),
    "zh": "\u5982\u4f55\u6253\u5f00\u8fd9\u4e2a\u6587\u4ef6\uff1f",
    "ja": "\u3053\u306e\u30d5\u30a1\u30a4\u30eb\u3092\u958b\u304f\u65b9\u6cd5\u306f\uff1f",
    "ko": "\uc774 \ud30c\uc77c\uc744 \uc5b4\ub5bb\uac8c \uc5f4\uc5b4\uc694?",
    "ar": (
        "\u0643\u064a\u0641 \u0623\u0641\u062a\u062d \u0647\u0630\u0627 \u0627\u0644\u0645"
        "\u0644\u0641\u061f"
    ),
    "fa": (
        "\u0686\u06af\u0648\u0646\u0647 \u0627\u06cc\u0646 \u067e\u0631\u0648\u0646\u062f"
        "\u0647 \u0631\u0627 \u0628\u0627\u0632 \u06a9\u0646\u0645\u061f"
    ),
    "he": (
        "\u05d0\u05d9\u05da \u05e4\u05d5\u05ea\u05d7\u05d9\u05dd \u05d0\u05ea \u05d4\u05e7"
        "\u05d5\u05d1\u05e5?"
    ),
    "hi": (
        "\u092f\u0939 \u092b\u093c\u093e\u0907\u0932 \u0915\u0948\u0938\u0947 \u0916\u094b"
        "\u0932\u0947\u0902?"
    ),
    "el": (
        "\u03a0\u03ce\u03c2 \u03b1\u03bd\u03bf\u03af\u03b3\u03c9 \u03c4\u03bf \u03b1\u03c1"
        "\u03c7\u03b5\u03af\u03bf;"
    ),
    "th": (
        "\u0e40\u0e1b\u0e34\u0e14\u0e44\u0e1f\u0e25\u0e4c\u0e19\u0e35\u0e49\u0e2d\u0e22\u0e48"
        "\u0e32\u0e07\u0e44\u0e23"
    ),
}


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_a_sentence_of_every_language_is_recognised(code: str) -> None:
    assert language(SENTENCES[code]) == code


@pytest.mark.parametrize(
    "text", ["", "hello", "12 + 30 = 42", "x = foo(bar)", "la la la", "\U0001f600"]
)
def test_what_is_unclear_is_no_language(text: str) -> None:
    assert language(text) == ""


@given(st.text())
def test_any_text_has_a_known_language_or_none(text: str) -> None:
    assert language(text) in LANGUAGES | {""}
