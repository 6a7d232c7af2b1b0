"""Files as documents that can be edited: JSON, tables, texts, arrays, tensors, PNG; as bytes; and what is no file.

An edit is {"file": name in the folder, "do": what, ...}:

| do | Of | Further keys |
| --- | --- | --- |
| set, insert | a document | at: keys and indices from its top; value |
| delete, double | a document | at: what is left out, or stands there twice |
| rename | a document | at: a key; value: its new name |
| array | .npz | name; how: dtype, shape, element, all, header, missing, rename, object; value |
| length | .safetensors | value: the length of the header that the file claims |
| chunk | PNG | how: tEXt, zTXt, iTXt, size; key, value; times: how often the value stands there |
| bytes | any | changes: [what, place, value] each |
| link | any | to: where it leads |
| remove, empty, folder, pipe | any | |

Documents are lists and dicts: of JSON the value, of JSON lines a list of values, of a table its rows of cells, of a
text its lines, of a .safetensors its header.
"""

import csv
import gzip
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 1 << 22  # bytes of a text in a PNG
ARGUMENTS = "arguments.json"  # a list of text: a command line, which `readers` hands over
_TWICE, _RAW = "\0twice:", "\0raw:"


@dataclass(frozen=True)
class Content:
    """kind: json, lines, table, text, tensors (a document in `value`), arrays (name -> array), png, or None: bytes."""

    kind: str | None
    value: Any = None

    @property
    def is_document(self) -> bool:
        return self.kind in ("json", "lines", "table", "text", "tensors")


@cache
def read_sound(path: str) -> Content:
    """`read`, of a file that does not change."""
    return read(Path(path))


def read(path: Path) -> Content:
    """What a file holds, for `make` and for what draws edits."""
    raw = path.read_bytes()
    data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    name = path.name.removesuffix(".gz")
    if name.endswith(".safetensors"):
        size = struct.unpack("<Q", data[:8])[0]
        return Content("tensors", json.loads(data[8 : 8 + size]))
    if name.endswith(".npz"):
        with np.load(path) as found:
            return Content("arrays", dict(found))
    if name.endswith(".png"):
        return Content("png")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Content(None)
    if "\0" in text:
        return Content(None)
    if name.endswith(".csv"):
        return Content("table", list(csv.reader(io.StringIO(text))))
    if name.endswith((".json", ".jsonl")):
        try:
            if not name.endswith(".jsonl"):
                return Content("json", json.loads(text))
        except ValueError:
            pass
        return Content("lines", [json.loads(line) for line in text.splitlines()])
    return Content("text", text.split("\n"))


def make(folder: Path, edit: dict) -> bool:
    """Carries out one edit in a copy of a sound folder; False where an earlier edit has left no place for it."""
    path = folder / edit["file"]
    edit = _placed(edit, str(folder.parent))
    if not path.is_file() or path.is_symlink():
        return False
    if edit["do"] in _PLACES:
        path.unlink()
        _PLACES[edit["do"]](path, edit)
    elif edit["do"] == "bytes":
        path.write_bytes(_changed(path.read_bytes(), edit["changes"]))
    else:
        try:
            content = read(path)
        except Exception:  # an earlier edit's doing
            return False
        if edit["do"] == "chunk":
            path.write_bytes(_with_chunk(path.read_bytes(), edit))
        elif edit["do"] == "array":
            _write_arrays(path, content.value, edit)
        elif edit["do"] == "length":
            path.write_bytes(struct.pack("<Q", edit["value"] % 2**64) + path.read_bytes()[8:])
        else:
            return _edit_document(path, content, edit)
    return True


def _placed(value, around):
    """With `{around}` filled in."""
    if isinstance(value, str):
        return value.replace("{around}", around)
    if isinstance(value, dict):
        return {_placed(k, around): _placed(v, around) for k, v in value.items()}
    return [_placed(v, around) for v in value] if isinstance(value, list) else value


_PLACES = {
    "link": lambda path, edit: os.symlink(edit["to"], path),
    "remove": lambda path, edit: None,
    "empty": lambda path, edit: path.write_bytes(b""),
    "folder": lambda path, edit: path.mkdir(),
    "pipe": lambda path, edit: os.mkfifo(path),
}


def _edit_document(path, content, edit):
    root = [content.value]
    *way, last = [0, *edit["at"]]
    holder = root
    try:
        for key in way:
            holder = holder[key]
        if edit["do"] == "set":
            holder[last]
            holder[last] = edit["value"]
        elif edit["do"] == "delete":
            del holder[last]
        elif isinstance(holder, list):
            holder.insert(last, edit["value"] if edit["do"] == "insert" else holder[last])
        elif edit["do"] == "double":
            holder[_TWICE + last] = holder[last]
        elif edit["do"] == "rename":
            holder[str(edit["value"])] = holder.pop(last)
        else:
            holder[str(edit["value"])] = edit["value"]
    except (AttributeError, KeyError, IndexError, TypeError):
        return False
    if root:
        _write_document(path, content.kind, root[0])
    else:
        path.write_bytes(b"")
    return True


def _write_document(path, kind, value):
    if kind == "tensors":
        old = path.read_bytes()
        data = old[8 + struct.unpack("<Q", old[:8])[0] :]
        header = dumps(value).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        return
    if kind == "json":
        text = dumps(value)
    elif kind == "lines":
        text = "".join(dumps(row) + "\n" for row in value) if isinstance(value, list) else dumps(value)
    elif kind == "table":
        text = _table(value)
    else:
        text = "\n".join(map(_text, value)) if isinstance(value, list) else _text(value)
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.suffix == ".gz" else data)


def _text(value):
    if isinstance(value, dict) and "$raw" in value:
        return value["$raw"]
    return value if isinstance(value, str) else dumps(value)


def _table(rows):
    if not isinstance(rows, list):
        return _text(rows)
    out = io.StringIO()
    for row in rows:
        if isinstance(row, list):
            try:
                csv.writer(out).writerow([_text(cell) for cell in row])
                continue
            except csv.Error:
                pass
        out.write(_text(row) + "\n")  # as it is, quotes and commas included
    return out.getvalue()


def dumps(value: Any) -> str:
    """JSON with the same key twice, and with what is no JSON, where the value says so."""
    text = json.dumps(_marked(value))
    text = text.replace(json.dumps(_TWICE)[1:-1], "")
    parts = text.split(f'"{json.dumps(_RAW)[1:-1]}')
    out = parts[0]
    for part in parts[1:]:
        code, _, rest = part.partition('"')
        out += bytes.fromhex(code).decode() + rest
    return out


def _marked(value):
    if isinstance(value, dict):
        if set(value) == {"$raw"} and isinstance(value["$raw"], str):
            return _RAW + value["$raw"].encode().hex()
        return {k: _marked(v) for k, v in value.items()}
    return [_marked(v) for v in value] if isinstance(value, list) else value


def _write_arrays(path, arrays, edit):
    name, how, value = edit["name"], edit["how"], edit["value"]
    header = None
    if name not in arrays:
        return
    array = arrays[name]
    with np.errstate(all="ignore"):
        if how == "missing":
            del arrays[name]
        elif how == "rename":
            arrays[str(value)] = arrays.pop(name)
        elif how == "object":
            arrays[name] = np.array([{"a": 1}, None], object)
        elif how == "header":
            header = value
        else:
            try:
                arrays[name] = _ARRAYS[how](array, value)
            except (ValueError, TypeError, OverflowError, IndexError):
                arrays[name] = np.asarray(str(value))
    with zipfile.ZipFile(path, "w") as file:
        for key, one in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(one), allow_pickle=True)
            data = buffer.getvalue()
            if header is not None and key == name:
                text = header.encode("utf-8", "surrogatepass")
                data = data[:8] + struct.pack("<H", len(text) % 2**16) + text + data[-array.nbytes :]
            file.writestr(f"{key.encode('utf-8', 'replace').decode()}.npy", data)


def _element(array, value):
    out = np.array(array)
    out.reshape(-1)[:1] = value
    return out


_ARRAYS = {
    "dtype": lambda array, value: array.astype(value),
    "shape": lambda array, value: np.resize(array, value),
    "element": _element,
    "all": lambda array, value: np.full_like(array, value),
}


def _with_chunk(data, edit):
    """Of a PNG: a text chunk behind the header, or another size in it."""
    head, rest = data[:33], data[33:]
    if edit["how"] == "size":
        body = struct.pack(">II", *(n % 2**32 for n in edit["value"])) + head[24:29]
        return head[:8] + _chunk(b"IHDR", body) + rest
    key = edit["key"].encode("latin-1", "replace")
    value = edit["value"].encode("utf-8", "surrogatepass")
    value *= min(edit["times"], LONGEST // max(len(value), 1) + 1)
    body = {
        "tEXt": key + b"\0" + value,
        "zTXt": key + b"\0\0" + zlib.compress(value),
        "iTXt": key + b"\0\1\0\0\0" + zlib.compress(value),
    }[edit["how"]]
    return head + _chunk(edit["how"].encode(), body) + rest


def _chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _changed(content, changes):
    """Bits, bytes and numbers changed; a part cut out, doubled, blanked, filled with noise; cut off."""
    data = bytearray(content)
    for what, place, value in changes:
        if not data:
            break
        at, length = place % len(data), 1 + value % 64
        if what == "bit":
            data[at] ^= 1 << value % 8
        elif what == "byte":
            data[at] = value % 256
        elif what == "number":
            data[at : at + 4] = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\x80\0\0\0")[value % 5]
        elif what == "cut":
            del data[at : at + length]
        elif what == "double":
            data[at:at] = data[at : at + length] * (1 + value % 50)
        elif what == "blank":
            data[at : at + length] = bytes(length)
        elif what == "noise":
            data[at : at + length] = np.random.default_rng(value).bytes(length)
        else:
            del data[at:]
    return bytes(data)


def copy(sound: Path, folder: Path) -> None:
    """A sound folder, to be edited."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder, symlinks=True)
