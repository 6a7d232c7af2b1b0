"""Registration and foreground crop: known poses are found, roles are kept, bad input gives a clear answer."""

import numpy as np
import pytest

from progemu_jax.data import foreground, phantom
from progemu_jax.data import registration as reg
from progemu_jax.errors import UserError


def chest(size=128, index=0):
    rng = phantom.generator("cohort", 77, index)
    patient = phantom.sample_patient(rng)
    state = phantom.sample_trajectory(rng, patient, 1)[0]
    return phantom.render(patient, state, phantom.sample_acquisition(rng), size).image


def pose(size, shift=(6.0, -4.0), scale=(1.05, 0.96), angle=0.02):
    """Prior pixel -> follow-up pixel about the centre."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear, centre = turn @ np.diag(scale), np.full(2, (size - 1) / 2)
    return np.column_stack([linear, centre + shift - linear @ centre])


def landmark_error(a, b, size):
    grid = np.stack([*np.meshgrid([0.25 * size, 0.5 * size, 0.75 * size], [0.3 * size, 0.65 * size])])
    points = np.vstack([grid.reshape(2, -1), np.ones(6)])
    return float(np.median(np.hypot(*(a @ points - b @ points))))


def inverse(transform):
    return np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]


def test_known_pose_is_found_and_follow_up_moves():
    size = 256
    follow = chest(size)
    truth = pose(size)
    prior = reg.resample(follow, truth, (size, size))  # the prior shows what the follow-up has at truth(x)
    result = reg.register(prior, follow)
    assert result.flag == 1
    assert landmark_error(np.eye(2, 3), truth, size) > 5
    assert landmark_error(result.transform, truth, size) < 0.5
    inner = slice(size // 5, -size // 5)
    before = np.abs(prior[inner, inner].astype(int) - follow[inner, inner]).mean()
    after = np.abs(prior[inner, inner].astype(int) - result.image[inner, inner]).mean()
    assert after < 0.35 * before
    np.testing.assert_array_equal(result.image, reg.resample(follow, result.transform, prior.shape))
    # The other way round gives the inverse: neither image is favoured, and roles are never swapped.
    back = reg.register(follow, prior)
    assert landmark_error(back.transform, inverse(truth), size) < 0.5


def test_exposure_does_not_matter_and_result_is_reproducible():
    size = 256
    follow = chest(size, 1)
    truth = pose(size, shift=(-7.0, 5.0))
    prior = reg.resample(follow, truth, (size, size))
    darker = np.clip(255 * (prior / 255.0) ** 1.8 * 0.7, 0, 255).astype(np.uint8)
    first, second = reg.register(darker, follow), reg.register(darker, follow)
    assert landmark_error(first.transform, truth, size) < 1.0
    np.testing.assert_array_equal(first.transform, second.transform)
    np.testing.assert_array_equal(first.image, second.image)


def test_sizes_may_differ():
    follow = chest(192, 2)
    prior = reg.resample(follow, reg.frame_to_frame((96, 144), (192, 192)), (96, 144))
    result = reg.register(prior, follow)
    assert result.image.shape == (96, 144)
    expected = np.array([[192 / 144, 0, (192 / 144 - 1) / 2], [0, 2, 0.5]])
    np.testing.assert_allclose(reg.frame_to_frame((96, 144), (192, 192)), expected)
    corners = np.array([[0, 143, 0, 143], [0, 0, 95, 95], [1, 1, 1, 1]])
    assert np.abs((result.transform - expected) @ corners).max() < 1.5  # follow-up pixels


@pytest.mark.parametrize("size", [32, 33, 64])
def test_small_images(size):
    follow = chest(size, 3)
    prior = reg.resample(follow, pose(size, shift=(2.0, -1.5)), (size, size))
    result = reg.register(prior, follow)
    assert result.image.shape == (size, size)
    assert result.image.dtype == np.uint8
    assert result.transform.shape == (2, 3)
    assert result.transform.dtype == np.float64
    assert result.flag == 1
    assert landmark_error(result.transform, pose(size, shift=(2.0, -1.5)), size) < 1.0


def test_alike_pair_is_left_as_it_is():
    image = chest(128, 4)
    result = reg.register(image, image.copy())
    assert result.flag == 2
    assert result.score > 0.99
    np.testing.assert_array_equal(result.image, image)
    np.testing.assert_array_equal(result.transform, np.eye(2, 3))


def test_what_is_no_pair_is_rejected_unmoved():
    image = chest(128, 5)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    for follow in (
        np.full_like(image, 7),
        np.zeros_like(image),
        noise,
        np.ascontiguousarray(np.rot90(image)),
    ):
        result = reg.register(image, follow)
        assert result.flag == -1
        np.testing.assert_array_equal(result.transform, np.eye(2, 3))
        np.testing.assert_array_equal(result.image, follow)
    assert reg.register(np.zeros_like(image), image).flag == -1


def test_films_that_lie_wrong_are_rejected_and_others_are_not():
    """On its side, upside down (turned or mirrored), a negative: they correlate with a chest by 0.6 and more."""
    for index in range(6):
        prior, follow = chest(128, index), reg.resample(chest(128, index), pose(128), (128, 128))
        assert reg.register(prior, follow).flag == 1
        wrong = [np.rot90(follow, k) for k in (1, 2, 3)] + [follow[::-1], 255 - follow]
        assert [reg.register(prior, np.ascontiguousarray(w)).flag for w in wrong] == [-1] * 5


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full((64, 64), np.nan), "float64"),
        (np.zeros((64, 64, 3), np.uint8), r"\[64, 64, 3\]"),
        (np.zeros((64, 31), np.uint8), "31 x 64"),
        (np.zeros((0, 0), np.uint8), "at least 32"),
        (None, "NoneType"),
    ],
)
def test_bad_input_is_one_clear_line(bad, words):
    good = chest(64)
    for pair, name in (((bad, good), "prior"), ((good, bad), "follow-up")):
        with pytest.raises(UserError, match=words) as error:
            reg.register(*pair)
        assert str(error.value).startswith(name)
        assert "\n" not in str(error.value)


def test_extreme_images_do_not_crash():
    rng = np.random.default_rng(1)
    wild = [
        np.where(rng.random((64, 200)) < 0.001, 255, 0).astype(np.uint8),
        np.tile(np.arange(200, dtype=np.uint8), (64, 1)),
        (255 * (np.indices((64, 200)).sum(0) % 2)).astype(np.uint8),
        np.pad(np.full((8, 8), 255, np.uint8), ((0, 56), (0, 192))),
    ]
    for prior in wild:
        for follow in [*wild, chest(64)]:
            result = reg.register(prior, follow)
            assert result.image.shape == prior.shape
            assert np.isfinite(result.transform).all()
            assert np.isfinite(result.score)
            assert result.flag in (-1, 0, 1, 2)


def test_ssim_of_known_values():
    image = chest(96)
    assert reg.ssim(image, image) == pytest.approx(1)
    flat, other = np.full((32, 32), 100, np.uint8), np.full((32, 32), 150, np.uint8)
    c1 = (0.01 * 255) ** 2  # only the luminance term is left
    assert reg.ssim(flat, other) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-4)


def test_crop_of_a_turned_rectangle():
    content = np.clip(chest(120).astype(int), 60, 255).astype(np.uint8)
    angle, centre = 0.1, np.array([110.0, 130.0])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    page = reg.resample(
        np.pad(content, 40),
        np.column_stack([turn, np.full(2, 99.5) - turn @ centre]),
        (260, 240),
        linear=True,
    )
    page = np.where(page > 30, page, 0).astype(np.uint8)  # a black surround
    page[3:6, 3:20] = 200  # a marker in the corner is not the foreground
    out = foreground.crop(page)
    assert abs(out.shape[0] - 120) <= 3
    assert abs(out.shape[1] - 120) <= 3
    resized = reg.resample(out, reg.frame_to_frame((120, 120), out.shape), (120, 120), linear=True)
    inner = slice(6, -6)
    assert np.abs(resized[inner, inner].astype(int) - content[inner, inner]).mean() < 6


def test_crop_of_large_pages_reads_no_freed_memory():
    """At this size freed memory goes back to the system: a view of a dead image would crash."""
    page = np.zeros((2600, 2200), np.uint8)
    page[200:2400, 300:1900] = 150
    for _ in range(3):
        assert foreground.rectangle(page).tolist() == [[300, 200], [1899, 200], [1899, 2399], [300, 2399]]


def test_crop_leaves_full_frames_and_nearly_black_ones():
    image = np.maximum(chest(96), 40)
    assert foreground.crop(image) is image
    dark = np.zeros((96, 96), np.uint8)
    dark[10:20, 10:20] = 200
    assert foreground.crop(dark) is dark
    with pytest.raises(UserError, match="float32"):
        foreground.crop(image.astype(np.float32))


def test_where_the_follow_up_does_not_reach_the_prior_shows():
    prior, follow = np.full((40, 40), 90, np.uint8), np.full((40, 40), 200, np.uint8)
    shift = np.array([[1.0, 0, 10], [0, 1, 0]])  # prior pixel x lies at x + 10 of the follow-up
    image = reg.resample(follow, shift, prior.shape)
    filled = reg.fill_uncovered(image, prior, shift, follow.shape)
    assert (filled[2:38, :27] == 200).all()
    assert (filled[:, 30:] == 90).all()


def test_borders_that_either_film_leaves_black_show_the_prior():
    still = np.eye(2, 3)
    prior, follow = np.full((64, 64), 90, np.uint8), np.full((64, 64), 200, np.uint8)
    prior[:, :6], follow[:8], follow[30:34, 30:34] = 0, 0, 0
    filled = reg.fill_uncovered(follow, prior, still, follow.shape)
    assert np.array_equal(filled[:, :6], prior[:, :6])
    assert np.array_equal(filled[:8], prior[:8])
    assert (filled[30:34, 30:34] == 0).all(), "dark, but inside the film"
    assert (filled[12:62, 10:62] == follow[12:62, 10:62]).all()


@pytest.mark.parametrize(("gain", "offset"), [(0.85, 14.0), (1.1, -9.0), (1.0, 0.0)])
def test_exposure_is_matched_and_an_opacity_is_left(gain, offset):
    prior = np.clip(chest(128), 40, 220)
    sick = prior.copy()
    sick[70:110, 20:50] = np.minimum(sick[70:110, 20:50].astype(int) + 60, 230)
    follow = np.rint((sick - offset) / gain).astype(np.uint8)
    matched, found = reg.match_exposure(follow, prior)
    assert found == pytest.approx((gain, offset), abs=1.0)
    assert np.abs(matched.astype(int) - sick).max() <= 2


def test_exposure_of_blank_and_unexposed_films_is_left():
    blank, black = np.full((64, 64), 120, np.uint8), np.zeros((64, 64), np.uint8)
    assert reg.match_exposure(blank, blank)[1] == (1.0, 0.0)
    image, found = reg.match_exposure(black, blank)
    assert found == (1.0, 0.0)
    assert np.array_equal(image, black)


def test_the_other_order_is_the_inverse_of_one_search_and_resamples_the_original():
    size = 256
    follow, truth = chest(size), pose(256)
    prior = reg.resample(follow, truth, (size, size))
    found = reg.register(prior, follow)
    back = reg.turned(found, prior, follow)
    assert landmark_error(back.transform, inverse(truth), size) < 0.5
    np.testing.assert_array_equal(back.image, reg.resample(prior, back.transform, follow.shape))
    assert (back.flag, back.score) == (found.flag, found.score)


def test_the_other_order_of_pairs_that_did_not_move():
    image, other = chest(96, 4), chest(64, 4)
    same = reg.turned(reg.register(image, image), image, image)
    assert same.flag == 2
    np.testing.assert_array_equal(same.image, image)
    small = reg.Registration(other, reg.frame_to_frame(image.shape, other.shape), 0.5, 0)
    turned = reg.turned(small, image, other)
    assert turned.image.shape == other.shape
    np.testing.assert_allclose(turned.transform, reg.frame_to_frame(other.shape, image.shape))


def test_a_film_that_would_be_mostly_black_in_the_other_order_is_no_pair():
    prior, follow = chest(96), chest(96, 1)
    wide = np.array([[1.0, 0, 0], [0, 1, 60]])  # the prior shows a strip of the follow-up
    assert reg.turned(reg.Registration(follow, wide, 0.7, 1), prior, follow).flag == -1
