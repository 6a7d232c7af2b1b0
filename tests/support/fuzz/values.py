"""Values that nobody meant, as hypothesis draws them: texts, names, numbers, and anything that JSON can hold.

What JSON has no value for is `{"$raw": text}`: the text itself stands in the file. `{around}` in a text becomes the
folder around the case's own, whose files nobody may touch.
"""

from hypothesis import strategies as st

VICTIM = "victim.txt"  # lies beside the case's folder, as do `FOLDER` and what ends in ours
FOLDER = "victims"

NAMES = (
    "", ".", "..", "/", "../" + VICTIM, "../../x", "../victims/new.safetensors", "{around}/" + VICTIM,
    "{around}/victims/new.png", "{around}/victims", "/etc/hostname", "/dev/zero", "/proc/self/environ",
    "a/../../" + VICTIM,
    "..\\" + VICTIM, "C:\\x", "a" * 300, "a" * 5000, "a/" * 2500, "a\0b", "~", "$HOME", "-", "--out=x", "con", "x.pth",
    "x.py", "a/b/c", "./.", "file:///etc/hostname", "http://192.0.2.1/x",
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\ud800", "\udfff\ud800", "a\ud800b", "\x1b[2J\x1b[31m", "x\nerror: forged", "\r\n", "\0", "\x7f",
    "\x85", "\u2028", "\u202e", "nan", "NaN", "inf", "-1", "0", "1e999", "9" * 400, "9" * 5000, "0x10", "1_000", "None",
    "null", "true", "[]", "<script>alert(1)</script>", "<b>", "{0}", "%s", "%n", "$(id)", "`id`", "\\x", '"', "'", ",",
    "=cmd|' /C calc'!A0", "é", "\u0301" * 50, "😀", "<|endoftext|>", "<|image start|>", "\ufeff", "word " * 3000,
    "00010101", "99991231", "2180-13-45", "21800230", "٣", "½", "\t",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, -2, 3, 7, 100, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**53 + 1,
    2**63 - 1, 2**63, 2**64, -(2**63), 10**9, 10**30, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 5e-324, 1e-30, 1e30,
    1e38, 1e300, 1.7e308, -1.7e308, float("inf"), float("-inf"), float("nan"), 1.5, 1e7, 10**6,
)  # fmt: skip
RAWS = (
    "1e999",
    "-1e999",
    "9" * 5000,
    "01",
    "-",
    "NaN",
    "Infinity",
    "nul",
    "'x'",
    "{",
    "[" * 100_000,
    '"\\ud800"',
    '"\n"',
)

texts = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=12))
names = st.one_of(st.sampled_from(NAMES), texts)
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-20, 2000), st.integers(), st.floats(width=32))
numbers_whole = st.one_of(st.sampled_from([n for n in NUMBERS if isinstance(n, int)]), st.integers())
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, names)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
)
raws = st.sampled_from(RAWS).map(lambda text: {"$raw": text})


@st.composite
def instead_of(draw, old):
    """A value for the place of `old`: mostly of its type, sometimes of any."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.one_of(anything, anything, raws))
    if isinstance(old, bool) or old is None or isinstance(old, dict | list):
        return draw(anything)
    if isinstance(old, int | float):
        near = [old + 1, old - 1, -old, old * 2, old / 2, float(old), str(old)]
        return draw(st.one_of(numbers, st.sampled_from(near)))
    return draw(text_instead_of(old))


@st.composite
def text_instead_of(draw, old):
    """A text for the place of the text `old`."""
    if old and draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from((old + " ", old[:-1], old * 2, old.upper(), old[::-1], old + "\n", old + "\ud800")))
    return draw(names if "/" in old or "." in old else texts)
