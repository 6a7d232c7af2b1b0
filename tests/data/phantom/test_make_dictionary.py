"""The dictionary's script on a WordNet of a few synsets, and the file that it wrote of the whole one."""

import pytest
from support.errors import fails
from support.wordnet import LICENCE, write

from progemu_jax.data.phantom import make_dictionary
from progemu_jax.text import wordings
from progemu_jax.text.vocabulary import BUILT_IN


@pytest.fixture
def wordnet(tmp_path):
    return write(tmp_path / "wordnet")


def test_words_near_a_seed_lead_to_words_of_the_prompts(wordnet, tmp_path):
    assert make_dictionary.write(wordnet, tmp_path / "out.txt").endswith(": 7 words")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    # "tumefy" is rare, "bloat" two below a seed; words that training prompts have come first, then the nearest.
    assert [line for line in lines if not line.startswith("#")] == [
        "v enlarge: increase", "n growth: increase", "v increase: enlarge", "a large: larger, massive",
        "a larger: large, massive", "a massive: larger, large", "v swell: increase, enlarge",
    ]  # fmt: skip
    head = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    assert head[-3:] == LICENCE
    assert "WordNet 3.1" in " ".join(head)
    net = make_dictionary.WordNet(wordnet / "dict")  # the folder itself will do
    assert net.senses("a", "larger") == net.senses("a", "large")
    assert net.uses("v", "tumefy") == 0 < net.uses("v", "swell")
    assert "definition" not in "".join(lines)


def test_a_folder_without_wordnet_is_one_line(tmp_path):
    fails("data.verb", make_dictionary.write, tmp_path, tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def test_the_committed_file_has_its_source_and_licence():
    lines = (BUILT_IN / make_dictionary.FILE).read_text(encoding="utf-8").splitlines()
    head = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    assert head.startswith(make_dictionary.HEADER.strip())
    for words in (
        "Permission to use, copy, modify",
        "Copyright 2011 by Princeton",
        "NO REPRESENTATIONS",
        "LICENSEE agrees",
    ):
        assert words in head
    heads = [line.partition(": ")[0] for line in lines if not line.startswith("#")]
    assert heads == sorted(heads, key=lambda h: (h[2:], h[0]))
    assert len(set(heads)) == len(heads)


def test_words_of_the_prompts_are_those_of_training_alone():
    told = make_dictionary.prompt_words()
    assert {"increase", "get worse", "development", "newly developed", "add", "larger"} <= told
    held = {f.key for table in wordings.FAMILIES.values() for f in table if f.held}
    assert held
    assert not told & held
