"""The TFDS builder `icg_cxr`; use `icg_cxr.build_shards` and `icg_cxr.write_tokens`."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2


class Builder(tfds.core.GeneratorBasedBuilder):
    """ICG-CXR: pairs of chest radiographs with the text of what changed (configs pairs, single, tokens)."""

    name = "icg_cxr"
    code_path = pathlib.Path(__file__)  # TFDS would ask importlib_resources, which it does not require
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS reads a list
        tfds.core.BuilderConfig(name="pairs", description="Prior and follow-up, prompt and interpretation."),
        tfds.core.BuilderConfig(name="single", description="Single images with their reports (stage 1)."),
        tfds.core.BuilderConfig(name="tokens", description="Visual codes of pairs and singles, with texts."),
    ]

    def __init__(self, *, image_size=512, height=64, width=64, labels=14, time=False, identity=None, **kwargs):
        self._shape, self._codes = (image_size, image_size, 1), (height, width)
        self._labels, self._time = labels, time  # time: with intervals and older films
        self._identity = identity or {}
        self.examples = {}
        super().__init__(**kwargs)

    def _info(self):
        feature, text = tfds.features, tfds.features.Text()

        def image():
            return feature.Image(shape=self._shape, encoding_format="png")

        def labels():
            return feature.Tensor(shape=(self._labels,), dtype=np.int8)

        def codes():
            return feature.Tensor(shape=self._codes, dtype=np.int32)

        person = {"age": np.float32, "sex": text, "group": text}
        common = {"patient_id": text, "source": text, "view": text}
        features = {
            "pairs": {
                **common, **person, "pair_id": text, "prior": image(), "followup": image(), "prompt": text,
                "interpretation": text, "confidence": np.int32, "days": np.float32, "labels_before": labels(),
                "labels_after": labels(),
            },
            "single": {
                **common, **person, "study_id": text, "image_id": text, "image": image(), "text": text,
                "labels": labels(),
            },
            "tokens": {
                "pair_id": text, "patient_id": text, "kind": text, "prior": codes(), "followup": codes(),
                "prompt": text, "interpretation": text,
            },
        }[self.builder_config.name]  # fmt: skip
        if self._time:
            older = feature.Sequence(codes() if self.builder_config.name == "tokens" else image())
            features |= {"days": np.float32, "older": older, "older_days": feature.Sequence(np.float32)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=feature.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._identity),
        )

    def _split_generators(self, dl_manager):
        # Iterables, or transforms of Apache Beam.
        return {name: iter(e) if hasattr(e, "__iter__") else e for name, e in self.examples.items()}

    def _generate_examples(self):
        raise NotImplementedError("the examples come from icg_cxr.build_shards or icg_cxr.write_tokens")

    def _example_writer(self):
        return _StableWriter(file_format=self.info.file_format)


class _StableWriter(writer.ExampleWriter):
    """Serialises an example's map in a fixed order, which TFDS leaves open: equal examples, equal bytes."""

    def write(self, path, examples):
        def stable():
            for key, serialized in examples:
                example = tf_example_pb2.Example.FromString(serialized)
                yield key, example.SerializeToString(deterministic=True)

        return super().write(path, stable())
