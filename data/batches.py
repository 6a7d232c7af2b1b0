"""Shards -> NumPy batches with Grain: shuffled anew each epoch, split over processes, resumed exactly."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from google.protobuf.json_format import ParseError
from PIL import Image

from progemu_jax.data.icg_cxr import config_folder
from progemu_jax.data.journeys import MOST_OLDER
from progemu_jax.errors import UserError
from progemu_jax.files.records import open_file

AUTO_CACHE = 256 << 20  # bytes of decoded images and codes that are kept in memory without asking


class Examples(Sequence):
    """Random access to the decoded examples of one split.

    Item i is a dict: images uint8 [S, S], codes int32 [h, w], labels int8 [14], numbers, and texts as str; of K older
    films, which may be none, images [K, S, S] or codes [K, h, w] and days float32 [K]. The order is that of the shards,
    the same every time. With cache=True (None: when the split takes under 256 MB decoded) each example is decoded once;
    its arrays are read-only then. Raises UserError when the shards or the split are missing or do not read, and for an
    example whose checksum is wrong.
    """

    def __init__(self, data_dir: str | Path, config: str, split: str, *, cache: bool | None = None):
        import tensorflow_datasets as tfds

        folder = config_folder(data_dir, config)
        self.name, self.folder = f"{config}/{split}", folder
        if not (folder / "features.json").exists():
            raise UserError(f"{folder}: no shards here; build the data first (--stages=data)")
        try:
            for path in folder.iterdir():  # TFDS would wait for a pipe, and read a device without end
                open_file(path).close()
            builder = tfds.builder_from_directory(str(folder))
            if split not in builder.info.splits:
                names = ", ".join(sorted(builder.info.splits)) or "none"
                raise UserError(f"{folder}: no split {split!r}; there are: {names}")
            features = dict(builder.info.features.items())
            series = {name: f.feature for name, f in features.items() if isinstance(f, tfds.features.Sequence)}
            images = {n for n, f in (features | series).items() if isinstance(f, tfds.features.Image)}
            self._source = builder.as_data_source(split, decoders=dict.fromkeys(images, _Encoded()) or None)
        except (
            AttributeError, ImportError, KeyError, OSError,
            ParseError, RuntimeError, SystemError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise UserError(f"{folder}: the shards do not read ({type(error).__name__}); delete them") from None
        self._images = images
        # Name -> shape of one and type; an image's last axis is its one channel.
        self._series = {n: (f.shape[:2], f.np_dtype) for n, f in series.items()}
        size = sum(
            int(np.prod([n or MOST_OLDER for n in f.shape])) * np.dtype(f.np_dtype).itemsize
            for f in features.values()
            if f.shape
        )
        self.keeps = size * len(self._source) <= AUTO_CACHE if cache is None else cache
        self._cache: list[dict | None] = [None] * len(self._source) if self.keeps else []

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]  # IndexError beyond the end
        if self.keeps:
            if self._cache[index] is None:
                self._cache[index] = self._decode(index)
            return dict(self._cache[index])
        return self._decode(index)

    def __getstate__(self):  # a worker process fills a cache of its own
        return self.__dict__ | {"_cache": [None] * len(self._cache)}

    def __repr__(self) -> str:  # Grain names its sources in logs
        return f"Examples({self.name}, {len(self)})"

    def _decode(self, index: int) -> dict:
        try:
            example = self._source[index]
            if not example or any(value is None for value in example.values()):  # a file cut between two chunks
                raise ValueError
        except (AttributeError, RuntimeError, ValueError) as error:  # ArrayRecord keeps a hash of every chunk
            raise UserError(
                f"{self.folder}: example {index} of {self.name} is damaged ({type(error).__name__}); "
                "delete the folder, it is built again"
            ) from None
        for name, value in example.items():
            if name in self._series:
                shape, kind = self._series[name]
                parts = [_image(part) if name in self._images else part for part in value]
                example[name] = np.array(parts, kind).reshape(-1, *shape)
            elif name in self._images:
                example[name] = _image(value)
            elif isinstance(value, bytes):
                example[name] = value.decode()
            if self.keeps and isinstance(example[name], np.ndarray):
                example[name].flags.writeable = False
        return example


class _Encoded:
    """A decoder of TFDS that leaves images encoded, those of a sequence too, which `SkipDecoding` cannot."""

    def setup(self, *, feature):
        pass

    def decode_example_np(self, example):
        return example

    decode_batch_example_np = decode_example_np


def _image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def examples(data_dir: str | Path, config: str, split: str, *, cache: bool | None = None) -> Examples:
    """The decoded examples of one split, by index; see `Examples`."""
    return Examples(data_dir, config, split, cache=cache)


class _Images(Sequence):
    """The images of a split: items 2 i and 2 i + 1 of pairs are the prior and the follow-up of example i."""

    def __init__(self, source: Examples):
        self.source = source
        self.keys = [k for k in ("prior", "followup", "image") if len(source) and k in source[0]]

    def __len__(self):
        return len(self.source) * len(self.keys)

    def __getitem__(self, index):
        index = range(len(self))[index]
        which = index % len(self.keys)
        return {"image": self.source[index // len(self.keys)][self.keys[which]]}

    def __repr__(self):
        return f"Images({self.source!r})"


class _Shuffled(Sequence):
    """An endless stream over a source, each epoch a permutation of its own.

    Grain's shuffle walks a 16-bit cipher until it hits the range, about a millisecond an index on a small
    set.
    """

    def __init__(self, source: Sequence, seed: int):
        self.source, self.seed, self.orders = source, seed, {}

    def __len__(self):
        return 2**62 // len(self.source) * len(self.source)

    def __getitem__(self, index):
        epoch, place = divmod(index, len(self.source))
        order = self.orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
            self.orders = {e: o for e, o in self.orders.items() if e == epoch - 1} | {epoch: order}
        return self.source[int(order[place])]

    def __repr__(self):
        return repr(self.source)


class _Share(Sequence):
    """What one of several processes reads of a stream: its rows of every batch.

    Batch n of all processes together is batch n of one process alone, row for row.
    """

    def __init__(self, source: Sequence, batch_size: int, index: int, count: int):
        self.source, self.rows, self.index, self.count = source, batch_size // count, index, count

    def __len__(self):
        return len(self.source) // (self.rows * self.count) * self.rows

    def __getitem__(self, index):
        batch, row = divmod(index, self.rows)
        return self.source[(batch * self.count + self.index) * self.rows + row]

    def __repr__(self):
        return repr(self.source)


class Batches:
    """Iterator of batches; a JSON-able state puts another iterator of the same arguments at one place."""

    def __init__(self, dataset, what: dict):
        import grain

        self.what = what
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * what["batch_size"])
        dataset = dataset.to_iter_dataset(options)
        if what["workers"]:
            if not flags.FLAGS.is_parsed():  # Grain's workers ask for absl's flags, which a script may not have
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=what["workers"]))
        self._iterator = iter(dataset)

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict:
        """Where the iterator is, and of what: {"position": Grain's state, "of": arguments}."""
        return {"position": self._iterator.get_state(), "of": self.what}

    def set_state(self, state: dict) -> None:
        """Goes to a state, also to one of another number of processes: all are at the same batch.

        Raises UserError when it is of other data, another batch size, seed or number of workers.
        """
        for key, now in self.what.items():
            before = state["of"].get(key) if isinstance(state, dict) and "of" in state else None
            if before != now:
                raise UserError(
                    f"the data iterator's state is of {key}={before!r}, this one has {key}={now!r}; "
                    "give another --workdir or the old value"
                )
        self._iterator.set_state(state["position"])

    def close(self) -> None:
        """Ends the reading threads and workers."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()


def image_batches(
    data_dir: str | Path,
    config: str,
    split: str,
    batch_size: int,
    seed: int,
    *,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    cache: bool | None = None,
    source: Examples | None = None,
) -> Batches:
    """{"image": uint8 [B, S, S]} without end: priors and follow-ups of `pairs`, or the images of `single`.

    repeat=False: one pass in the shards' order, the last batch perhaps smaller, whole on every process. Else
    B = batch_size / process_count: each process has its own rows of every batch. workers: processes that read, decode
    and transform; 0: a thread here. The batches are the same for any number. source: an `Examples` to read from, so
    that several iterators share its cache.
    """
    source = _Images(source if source is not None else Examples(data_dir, config, split, cache=cache))
    if not source.keys:
        raise UserError(f"{data_dir}: config {config} has no images")
    return _batches(source, batch_size, seed, None, repeat, process_index, process_count, workers)


def example_batches(
    data_dir: str | Path,
    config: str,
    split: str,
    batch_size: int,
    seed: int,
    *,
    transform: Callable[[dict, np.random.Generator], dict[str, np.ndarray]],
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    cache: bool | None = None,
    source: Examples | None = None,
) -> Batches:
    """Stacks of `transform(example, rng)`, dicts of equally shaped arrays; otherwise as `image_batches`.

    The generator depends on `seed` and the example's place in the stream alone.
    """
    source = source if source is not None else Examples(data_dir, config, split, cache=cache)
    return _batches(source, batch_size, seed, transform, repeat, process_index, process_count, workers)


def _batches(source, batch_size, seed, transform, repeat, process_index, process_count, workers) -> Batches:
    import grain

    if batch_size < 1 or workers < 0 or not 0 <= process_index < process_count:
        raise UserError(
            f"batch_size={batch_size}, workers={workers}, process {process_index} of {process_count}: impossible"
        )
    if repeat and batch_size % process_count:
        raise UserError(f"batch_size={batch_size} does not divide over {process_count} processes: give a multiple")
    # The slice takes everything; without it the seeds of `random_map` would be others than those of earlier runs.
    dataset = grain.MapDataset.source(_Shuffled(source, seed) if repeat else source).seed(seed)[::1]
    if transform is not None:
        dataset = dataset.random_map(transform)
    rows = batch_size
    if repeat and process_count > 1:
        dataset = grain.MapDataset.source(_Share(dataset, batch_size, process_index, process_count))
        rows = batch_size // process_count
    what = {"source": repr(source), "batch_size": batch_size, "seed": seed, "repeat": repeat, "workers": workers}
    return Batches(dataset.batch(rows, batch_fn=_stack), what)


def _stack(items: Sequence[dict]) -> dict[str, np.ndarray]:
    return {key: np.stack([item[key] for item in items]) for key in items[0]}


class ArrayBatches:
    """Endless shuffled batches of in-memory arrays; its state is the step, so a resumed run sees the same ones.

    Of several processes each draws the whole batch and takes its own rows.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.arrays, self.batch_size, self.seed, self.step = arrays, batch_size, seed, 0
        share = batch_size // process_count
        self.own = slice(process_index * share, (process_index + 1) * share)
        self.size = len(next(iter(arrays.values())))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        per_epoch = max(1, self.size // self.batch_size)
        epoch, index = divmod(self.step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        self.step += 1
        return {k: v[rows[self.own]] for k, v in self.arrays.items()}

    def get_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_state(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])
