"""Edits as hypothesis draws them from what a file holds. `files` says what an edit is, and carries it out.

They are drawn in one process and carried out in another, and are what the log keeps: a case depends on nothing else.
"""

from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from support.fuzz import files, values

MOST = 2  # edits of a case
_BYTES = ("bit", "byte", "number", "cut", "double", "blank", "noise", "end")


def batch(folder: Path, names: list[str], number: int, count: int) -> list[list[dict]]:
    """`count` cases (lists of edits) of the files `names` of a sound folder, always the same for a number."""
    found = []

    @seed(number)
    @settings(
        max_examples=count + 1, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(edit(str(folder), tuple(names)), min_size=1, max_size=MOST))
    def draw(case):
        found.append(case)

    draw()
    return found[1 : count + 1]  # the first is the smallest there is, whatever the seed


@st.composite
def edit(draw, folder, names):
    """One edit of one of the files."""
    name = draw(st.sampled_from(names))
    content = files.read_sound(f"{folder}/{name}")
    how = draw(st.integers(0, 15))
    if name == files.ARGUMENTS:
        return {"file": name, **draw(_argument(content.value))}
    if how == 0:
        return {"file": name, **draw(_place(names))}
    if how == 1 or content.kind is None:
        return {"file": name, "do": "bytes", "changes": draw(_bytes)}
    if content.kind == "tensors" and how == 2:
        return {"file": name, "do": "length", "value": draw(st.one_of(st.integers(0, 200), values.numbers_whole))}
    return {"file": name, **draw(_OF_KIND.get(content.kind, _document)(content.value))}


@st.composite
def _place(draw, names):
    """A file that is none, or another."""
    what = draw(st.sampled_from(("link", "link", "remove", "empty", "folder", "pipe")))
    to = ("{around}/" + values.VICTIM, "{around}", ".", "..", "/etc/hostname", "/dev/zero", "nowhere", *names[:3])
    return {"do": what, **({"to": draw(st.sampled_from(to))} if what == "link" else {})}


_bytes = st.lists(
    st.tuples(
        st.sampled_from(_BYTES), st.one_of(st.integers(0, 800), st.integers(0, 2**20)), st.integers(0, 2**16)
    ).map(list),
    min_size=1, max_size=4,
)  # fmt: skip


@st.composite
def _document(draw, document):
    """An edit somewhere in lists and dicts."""
    at, node = [], document
    while isinstance(node, dict | list) and node and draw(st.integers(0, 6)):
        at.append(
            draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
        )
        node = node[at[-1]]
    do = draw(st.sampled_from(("set",) * 8 + ("delete", "delete", "double", "rename", "insert"))) if at else "set"
    made = {"do": do, "at": at}
    if do in ("set", "insert"):
        made["value"] = draw(values.instead_of(node))
    elif do == "rename":
        made["value"] = draw(values.texts)
    return made


@st.composite
def _argument(draw, arguments):
    """Of a command line: names no folder beyond the case's own, which would be one that the user has given."""
    at = draw(st.integers(0, len(arguments) - 1))
    do = draw(st.sampled_from(("set", "set", "set", "delete", "double", "insert")))
    made = {"do": do, "at": [at]}
    if do in ("set", "insert"):
        flag, _, old = arguments[at].partition("=")
        value = draw(values.text_instead_of(old).filter(lambda text: "/" not in text and ".." not in text))
        made["value"] = value if draw(st.integers(0, 5)) == 0 else f"{flag}={value}"
    return made


@st.composite
def _array(draw, arrays):
    name = draw(st.sampled_from(sorted(arrays)))
    how = draw(
        st.sampled_from(("dtype", "shape", "element", "element", "all", "header", "missing", "rename", "object"))
    )
    value = {
        "dtype": st.sampled_from(("<i8", "<u2", "<f8", "<f2", "?", "<c16", "<U3", "S2", "<M8[s]", ">f4")),
        "shape": st.lists(st.integers(0, 5), max_size=4),
        "header": st.sampled_from((
            "", "((((", "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n", "{}", "1" * 9999,
            "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n", "{'descr': '<f4', 'shape': -1}\n", "\ud800",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", "__import__('os').system('true')",
        )),
    }.get(how, values.leaves)  # fmt: skip
    return {"do": "array", "name": name, "how": how, "value": draw(value)}


@st.composite
def _png(draw, _):
    if draw(st.integers(0, 3)) == 0:
        return {"do": "chunk", "how": "size", "value": draw(st.lists(st.integers(0, 2**32), min_size=2, max_size=2))}
    keys = st.one_of(
        st.sampled_from(("Comment", "progemu:prompt", "progemu:model", "progemu:sampling", "")), values.texts
    )
    return {
        "do": "chunk", "how": draw(st.sampled_from(("tEXt", "zTXt", "iTXt"))), "key": draw(keys),
        "value": draw(values.texts), "times": draw(st.sampled_from((1, 1, 1, 100_000))),
    }  # fmt: skip


_OF_KIND = {"arrays": _array, "png": _png}
