"""Words of hospitals for the chest, for how it is seen, and for nothing: one table, which a site's settings extend.

Whatever was typed is compared, and never shown. Accents, digits and punctuation do not count, and an accented letter
may be lost, written as two (OE) or replaced by question marks. Which character set bytes are in is not asked, as files
often say none or a wrong one: a word counts in whichever reading has it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Final

# A star stands for the rest of a longer word; without one the whole word is meant. "=" means that nothing else is said.
# Words that are not in Latin, Greek or Cyrillic letters count wherever they are.
# fmt: off
CHEST: Final = {
    "English": ("*CHEST*", "CXR", "*THORAX*", "THORA*", "LUNG", "LUNGS", "PULMO*"),
    "Spanish, Portuguese": ("*TÓRAX*", "TORÁCIC*", "PECHO", "PEITO", "PULMÓN*", "PULMÃO", "PULMÕES"),
    "Italian": ("*TORACE", "TORACIC*", "PETTO", "POLMON*"),
    "French": ("POITRINE", "POUMON*"),
    "German": ("BRUST", "BRUSTKORB*", "LUNGE", "LUNGEN*"),
    "Dutch": ("BORST", "BORSTKAS*", "LONGEN", "LONGFOTO*", "=LONG", "=X LONG"),
    "Nordic": (
        "BRYST", "BRYSTKASSE*", "BRÖSTKORG*", "BRÖST", "LUNGA", "LUNGAN", "LUNGOR*", "LUNGER*", "LUNGRÖNTGEN*",
        "TORAKS*", "KEUHKO*", "RINTAKEHÄ", "BRJÓSTHOL*", "LUNGU",
    ),
    "Polish": ("KLATK* PIERSIOW*", "KLATKA", "KL PIERSIOWA", "KL PIERS", "KLP", "PŁUC*", "=PIERSIOWA"),
    "Czech, Slovak": ("HRUDNÍK*", "HRUDNÍ KOŠ", "HRUDNÁ KLIETKA", "HRUDNÍ", "PLÍCE", "PĽÚCA"),
    "Hungarian, Romanian": ("MELLKAS*", "TÜDŐ*", "TORACELUI", "PLĂMÂN*"),
    "Turkish": ("AKCİĞER*", "GÖĞÜS*", "TORAKS*", "TORAKAL*"),
    "Greek, Russian": ("ΘΩΡΑΚ*", "ΠΝΕΥΜΟΝ*", "ГРУДЬ", "ГРУДНАЯ КЛЕТКА", "ГРУДНОЙ КЛЕТКИ", "ОГК", "ЛЕГКИ*", "ЛЁГКИ*"),
    "Japanese": ("胸", "肺", "キョウブ", "KYOUBU", "KYOBU"),
    "Chinese": ("胸", "肺", "XIONGBU", "XIONG BU"),
    "Korean": ("흉부", "가슴", "폐", "HYUNGBU"),
}
# Say that the spine or another bone is meant where a word above only says which part of it.
NOT_CHEST: Final = (
    "*SPIN*", "*LUMB*", "VÉRTEB*", "COL", "COLUM*", "*COLONN*", "COLUNA*", "*KOLUM*", "RACHIS", "*WIRBEL*", "BWS",
    "LWS", "*WERVEL*", "*HVIRVEL*", "RYGG*", "*RYGSØJLE*", "*KOTPELAR*", "KOTA*", "*SELKÄRANKA*", "KRĘG*", "ODCINEK",
    "PÁTEŘ*", "GERINC*", "*OMURGA*", "ПОЗВОН*", "ΣΠΟΝΔΥΛ*", "椎", "胸骨", "胸腰", "흉추", "흉요추", "척추", "흉골",
)
SIDE: Final = {
    "in any language": (
        "LL", "RL", "L L", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "LAT", "LLAT", "RLAT", "DLAT",
        "LATERAL*", "LLATERAL*", "RLATERAL*", "DLATERAL*", "LATERO*", "OBL", "OBLI*", "SAGITTAL*",
    ),
    "Spanish, Portuguese": ("PERFIL*", "SAGITAL*"),
    "French, Italian": ("PROFIL", "PROFILO", "LATÉRAL*"),
    "German": ("SEITLICH*", "SEITL", "SEIT", "SEITENAUFNAHME*", "SEITENANSICHT*", "SCHRÄG*", "TRANSVERSAL*"),
    "Dutch": ("DWARS*", "LATERAAL", "ZIJDELINGS*", "ZIJKANT", "ZIJAANZICHT*", "ZIJOPNAME*", "SCHUIN*", "=ZIJ"),
    "Nordic": (
        "SIDEBILDE*", "SIDEBILLED*", "SIDEOPTAG*", "SIDEVISNING", "FRA SIDEN", "SIDOBILD*", "FRÅN SIDAN", "SIVU*",
        "SKRÅ*", "SNED*", "VINO", "=SIDE", "=SIDA",
    ),
    "Polish": ("BOCZN*", "BOCZ", "BOK", "Z BOKU", "SKOŚN*"),
    "Czech, Slovak": ("BOČN*", "ŠIKM*"),
    "Hungarian, Romanian": ("OLDAL*", "FERDE", "DIN PROFIL"),
    "Turkish": ("YAN", "YANAL", "OBLİK"),
    "Greek, Russian": ("ΠΛΑΓΙ*", "ΠΡΟΦΙΛ", "БОКОВ*", "БОК", "КОСАЯ"),
    "Japanese": ("側面", "側位", "斜位", "ソクメン", "SOKUMEN"),
    "Chinese": ("侧面", "侧位", "側位", "侧胸", "胸侧", "胸側", "斜位", "CEWEI", "CE WEI"),
    "Korean": ("측면", "측위", "측방", "사위", "사면"),
}
FRONTAL: Final = {
    "PA": (
        "PA", "P A", "POSTERO ANT*", "POSTEROANT*", "POSTERIOR ANTERIOR", "DORSO VENTRAL*", "DORSOVENTRAL*",
        "TYLNO PRZEDN*", "ARKA ÖN", "ZADOPREDN*", "ZADOPŘEDN*", "後前", "后前", "후전",
    ),
    "AP": (
        "AP", "A P", "ANTERO POST*", "ANTEROPOST*", "ANTERIOR POSTERIOR", "VENTRO DORSAL*", "VENTRODORSAL*",
        "PRZEDNIO TYLN*", "ÖN ARKA", "PREDOZADN*", "PŘEDOZADN*", "前後", "前后", "전후",
    ),
    "FRONTAL": (
        "FRONTAL*", "FRONT", "FRONTE", "FRENTE", "FACE", "DE FACE", "VOORACHTER*", "ACHTERVOOR*", "ПРЯМАЯ", "ΠΡΟΣΘΙ*",
        "正面", "正位", "正侧", "正側", "정면", "정측",
    ),
}
NOTHING: Final = (
    "UNK", "UNKN", "UNKNOWN", "UNKNOWN BODY PART", "OTHER", "OTHERS", "NONE", "NO", "N A", "NA", "ND", "N D", "NS",
    "N S", "NULL", "NIL", "NAN", "BLANK", "EMPTY", "UNDEFINED", "UNDEF", "UNSPECIFIED", "NOT SPECIFIED",
    "NOT APPLICABLE", "NOT AVAILABLE", "NOT DEFINED", "NOT GIVEN", "NOT KNOWN", "NOT SET", "NOT STATED", "MISC",
    "MISCELLANEOUS", "VARIOUS", "GENERAL", "DEFAULT", "ANY", "TBD", "BODY PART", "BODYPART", "BODYPARTEXAMINED", "X",
    "XX", "XXX", "DESCONOCIDO", "DESCONOCIDA", "DESCONHECIDO", "OTRO", "OTROS", "OUTRO", "OUTROS", "NINGUNO",
    "NENHUM", "SCONOSCIUTO", "IGNOTO", "ALTRO", "NESSUNO", "INCONNU", "INCONNUE", "AUTRE", "AUTRES", "AUCUN",
    "UNBEKANNT", "ANDERE", "ANDERES", "SONSTIGE", "SONSTIGES", "KEINE", "ONBEKEND", "OVERIGE", "OVERIG", "GEEN",
    "OKÄND", "UKENDT", "UKJENT", "ANNAT", "ANDET", "ANNET", "INGEN", "TUNTEMATON", "MUU", "NIEZNANE", "NIEZNANA",
    "NIEZNANY", "INNE", "BRAK", "BİLİNMİYOR", "DİĞER", "YOK", "НЕИЗВЕСТНО", "ΑΓΝΩΣΤΟ", "不明", "その他", "未知",
    "其他", "其它", "无", "없음", "기타", "미상",
)
# SNOMED CT, and as it was coded before (PS3.16 8.1). What is coded otherwise is told by its meaning, if at all.
SNOMED: Final = frozenset(("SCT", "SRT", "SNM3", "99SDM"))
HUMAN_CODES: Final = frozenset(("337915000", "L-85003", "30996001", "L-85B00"))
CHEST_CODES: Final = frozenset((  # thorax, lung, and regions that include them (PS3.16 CID 4009)
    "816094009", "51185008", "T-D3000", "39607008", "T-28000", "417437006", "R-FAB52", "416152001", "R-FAB53",
    "416319003", "R-FAB54", "416550000", "R-FAB55", "416775004", "R-FAB56",
))
SIDE_CODES: Final = frozenset((  # lateral, sagittal, oblique (PS3.16 CID 4010)
    "399067008", "R-102CD", "399198007", "R-10232", "399173006", "R-10236", "399352003", "R-10228", "399260004",
    "R-10224", "30730003", "G-A145", "399182000", "R-102C1", "399236003", "R-10234", "399184004", "R-10238",
    "399135007", "R-10220", "399356000", "R-40985", "399006002", "R-10212", "399038007", "R-10210", "399059000",
    "R-10216", "399312000", "R-10208", "399160007", "R-10204", "260427002", "R-40783", "260426006", "R-40782",
    "399099002", "R-10230", "399368009", "R-10226",
))
# fmt: on
FRONTAL_CODES: Final = {
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399033003", "R-10202"), "FRONTAL"),
}

_READINGS: Final = (
    *("utf-8", "latin-1", "iso8859_2", "iso8859_5", "iso8859_7", "iso8859_9"),
    *("gb18030", "big5", "shift_jis", "euc_jp", "iso2022_jp_2", "euc_kr"),
)
_LETTERS = str.maketrans(
    {"Ł": "L", "Ø": "O", "Đ": "D", "Ð": "D", "Æ": "AE", "Œ": "OE", "Þ": "TH", "\ufffd": "?", "¿": "?"}
)
_AS_TWO = {"Ä": "AE", "Ö": "OE", "Ø": "OE", "Ü": "UE", "Å": "AA"}
_ALPHABETS = re.compile(r"[A-Z?\u0370-\u052f]")
_IDEOGRAPHS = "\u2e80"


def read(value: bytes) -> str:
    """Return every reading of a text value, folded, for the functions below; each ends where it ended."""
    if value.isascii() and b"\x1b" not in value:
        return fold(value.decode("ascii"))
    readings = dict.fromkeys(fold(value.decode(encoding, "ignore")) for encoding in _READINGS)
    return "|".join(readings)


def fold(text: str) -> str:
    """Return a text in capitals without accents, digits and punctuation; what replaces a lost letter becomes "?"."""
    plain = (c for c in unicodedata.normalize("NFKD", text.upper()) if not unicodedata.combining(c))
    letters = unicodedata.normalize("NFC", "".join(plain)).translate(_LETTERS)
    return re.sub(r"(?:[^\w?]|[\d_])+", " ", letters).strip()


def names_chest(text: str, more: tuple[str, ...] = ()) -> bool:
    """Return whether a text (of `read`) names the chest and not its spine; `more` are a site's own words for it."""
    site = bool(more and _pattern(more).search(text))
    return site or bool(_CHEST.search(text) and not _NOT_CHEST.search(text))


def names_side(text: str, more: tuple[str, ...] = ()) -> bool:
    """Return whether a text (of `read`) names a lateral or oblique view; `more` are a site's own words for it."""
    return bool(_SIDE.search(text) or (more and _pattern(more).search(text)))


def frontal(text: str) -> str:
    """Return which frontal view a text (of `read`) names first: PA, AP, FRONTAL or "" for none."""
    found = ((match.start(), view) for view, pattern in _FRONTAL.items() if (match := pattern.search(text)))
    return min(found, default=(0, ""))[1]


def says_nothing(text: str) -> bool:
    """Return whether a text (of `read`) is empty, lost, or a word for "not known"."""
    readings = [reading.strip(" ?") for reading in text.split("|")]
    return not any(readings) or any(map(_NOTHING.fullmatch, readings))


@functools.cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(dict.fromkeys(map(_expression, words))))


def _expression(word: str) -> str:
    """Return the regular expression of one word of the tables."""
    body = "".join(_letter(letter) for letter in word.strip("*=").upper())
    if word.startswith("="):
        return rf"(?:^|(?<=\|)){body}(?=$|\|)"
    if max(fold(word), default="") >= _IDEOGRAPHS:
        return body
    start, end = "" if word.startswith("*") else r"(?<!\w)", "" if word.endswith("*") else r"(?!\w)"
    return start + body + end


def _letter(letter: str) -> str:
    plain = fold(letter)
    if not plain:
        return r"\w*" if letter == "*" else " *"
    if plain == letter or not _ALPHABETS.match(plain):
        return re.escape(plain)
    return f"(?:{plain}|{_AS_TWO.get(letter, plain)}|[? ]{{1,3}})"


_CHEST = _pattern(tuple(word for words in CHEST.values() for word in words))
_NOT_CHEST = _pattern(NOT_CHEST)
_SIDE = _pattern(tuple(word for words in SIDE.values() for word in words))
_FRONTAL: Final = {view: _pattern(words) for view, words in FRONTAL.items()}
_NOTHING = _pattern(NOTHING)
