"""ProgEmu: dial, roll-out, and the text of a given pair, on random weights."""

import itertools
import json
import warnings

import numpy as np
import pytest
from support.tiny_run import PROMPT

from progemu_jax import provenance
from progemu_jax.errors import PromptWarning, UserError
from progemu_jax.files.predictions import Case
from progemu_jax.sampling import watch
from progemu_jax.text import findings


class TestDialAndRollout:
    def test_the_dial_is_three_requests_with_one_seed(self, model, prior):
        dial = model.dial(prior, "New left pleural effusion.", seed=1)
        assert list(dial) == list(findings.GRADES)
        for word, out in zip(("small", "moderate", "large"), dial.values(), strict=True):
            assert out.prompt == f"New {word} left pleural effusion."
        batch = [Case("request", dial["mild"].prior_codes, out.prompt) for out in dial.values()]
        again = model.sample(batch, seed=1)
        np.testing.assert_array_equal(np.concatenate([out.codes for out in dial.values()]), again.codes)

    @pytest.mark.parametrize("prompt", ["Resolved left pleural effusion.", "No significant change.", "x"])
    def test_a_prompt_without_a_grade_is_refused(self, model, prior, prompt):
        with pytest.raises(UserError, match="grade"):
            model.dial(prior, prompt)

    def test_each_step_starts_from_the_images_before(self, model, prior):
        prompts = ["New edema.", "Worsening edema.", "Resolved edema."]
        steps = model.rollout(prior, prompts, num_samples=3, seed=5)
        first = model.counterfactual(prior, prompts[0], num_samples=3, seed=5)
        np.testing.assert_array_equal(steps[0].codes, first.codes)
        for before, after in itertools.pairwise(steps):
            np.testing.assert_array_equal(after.prior_codes, before.codes)
            np.testing.assert_array_equal(after.prior, before.images)
        assert [step.prompt for step in steps] == prompts

    def test_a_watched_course_is_the_same_and_says_its_steps(self, model, prior, monkeypatch):
        monkeypatch.setattr(watch, "BLOCK", 0)
        prompts, told = ["New edema.", "Worsening edema."], []
        alone, watched = (
            model.rollout(prior, prompts, num_samples=3, seed=5, watch=one) for one in (None, told.append)
        )
        for one, other in zip(alone, watched, strict=True):
            np.testing.assert_array_equal(one.images, other.images)
            assert one.texts == other.texts
        assert [(p.step, p.steps) for p in told] == sorted((p.step, 2) for p in told)
        assert {p.step for p in told} == {1, 2}

    def test_a_still_step_under_the_automatic_mask_keeps_every_trajectory(self, model, prior):
        steps = model.rollout(prior, ["New edema.", "No significant change."], num_samples=3, mask="auto")
        np.testing.assert_array_equal(steps[1].codes, steps[0].codes)
        np.testing.assert_array_equal(steps[1].composite(), steps[0].images)

    @pytest.mark.parametrize("prompts", ["New edema.", [], None, ["New edema.", ""], ["New edema.", "a " * 300]])
    def test_bad_prompts_are_refused_before_the_first_step(self, model, prior, prompts):
        with pytest.raises(UserError, match="prompt"):
            model.rollout(prior, prompts)


def test_a_followup_that_is_explained_leans_to_the_prior_as_in_training(model, prior, monkeypatch):
    other = prior[::-1].copy()
    apart, same = (model.explain(prior, image, num_samples=4, seed=1) for image in (other, prior))
    assert apart != same
    monkeypatch.setattr(model, "slack", 1e9)  # then every code stays the prior's
    assert model.explain(prior, other, num_samples=4, seed=1) == same


def test_text_of_a_pair_is_the_text_of_those_codes(model, codes):
    """What the text is when the image happens to come out as given, is the text of the given pair."""
    made = model.counterfactual(codes, PROMPT, num_samples=3, seed=2)
    again = [model.explain(codes, made.codes[s], PROMPT, num_samples=3, seed=2)[s] for s in range(3)]
    assert again == made.texts
    assert len(model.explain(codes, codes, num_samples=3)) == 3


class TestUnderstood:
    def test_of_each_step_of_a_dial_and_a_course(self, model, prior):
        dial = model.dial(prior, "New left pleural effusion.", num_samples=3)
        assert {grade: out.understood.read[0].grade for grade, out in dial.items()} == {g: g for g in findings.GRADES}
        steps = model.rollout(prior, ["New edema.", "Resolved edema."], num_samples=3)
        assert [step.understood.read[0].direction for step in steps] == ["new", "resolved"]

    def test_a_warning_comes_once_a_prompt_and_moves_no_code(self, model, prior):
        prompts = ["Sunny.", "New rib fracture.", "Sunny.", "New edema."]
        with pytest.warns(PromptWarning) as caught:
            steps = model.rollout(prior, prompts, num_samples=3, seed=2)
        assert [str(w.message).split(":")[0] for w in caught] == ["prompt 'Sunny.'", "prompt 'New rib fracture.'"]
        assert {w.filename for w in caught} == {__file__}
        assert steps[1].understood.unknown == ("fracture",)
        plain = model.sample([Case("request", model.tokenize(prior), "Sunny.", s) for s in range(3)], seed=2)
        np.testing.assert_array_equal(steps[0].codes, plain.codes)
        with pytest.warns(PromptWarning, match="fracture") as caught:
            model.dial(prior, "New left pleural effusion, rib fracture.")
        assert len(caught) == 1

    def test_as_an_error_it_stops_the_request_before_anything_is_drawn(self, model, prior, monkeypatch):
        monkeypatch.setattr(model, "sample", None)
        with warnings.catch_warnings():
            warnings.simplefilter("error", PromptWarning)
            with pytest.raises(PromptWarning, match="Sunny"):
                model.counterfactual(prior, "Sunny.")

    def test_capitals_alone_are_drawn_as_lower_case_and_kept_as_typed(self, model, prior, tmp_path):
        low, typed = PROMPT.lower(), PROMPT.upper()
        expected = model.counterfactual(prior, low, num_samples=3, seed=4)
        found = model.counterfactual(prior, typed, num_samples=3, seed=4)
        np.testing.assert_array_equal(found.codes, expected.codes)
        assert found.prompt == typed
        assert found.understood == expected.understood
        np.testing.assert_array_equal(model.change_map(prior, typed), model.change_map(prior, low))
        assert model.rollout(prior, [typed], num_samples=3)[0].prompt == typed
        assert model.explain(prior, prior, typed, num_samples=3) == model.explain(prior, prior, low, num_samples=3)
        dial = model.dial(prior, "NEW LEFT PLEURAL EFFUSION.", num_samples=3)
        assert dial["mild"].prompt == "new small left pleural effusion."
        found.save(tmp_path)
        chunks = provenance.read_png(tmp_path / "images/request-0.png")
        assert chunks["progemu:prompt"] == typed
        assert json.loads(chunks["progemu:understood"]) == found.understood.to_dict()
