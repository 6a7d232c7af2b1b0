"""Every metric against an independent implementation on 200 random and degenerate inputs: `make parity-eval`.

scikit-learn, scikit-image, scipy, torchmetrics, prdc, m3-score, pytorch-msssim, sacrebleu, rouge-score, NLTK; and the
XRV wrapper's loading code against the library itself, with random weights in the files' real formats. All within 1e-6.
"""

import math

import numpy as np
import pytest
from support.eval_inputs import CASES, close, features, import_torchvision

from progemu_jax.eval.metrics import cmig, divergence, fidelity, image, retention, roc, utility, words

pytestmark = pytest.mark.parity
WORDS = [
    "new",
    "worse",
    "left",
    "right",
    "small",
    "large",
    "pleural",
    "effusion",
    "edema",
    "no",
    "change",
    ",",
    ".",
    "2.5",
    "cm",
]


def ranking(seed):
    """scores, labels, integer weights: some without ties, some of few levels, some constant, some of one class."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 120))
    scores = rng.random(n)
    if seed % 3:
        scores = np.round(scores, seed % 3 - 1)
    labels = (rng.random(n) < rng.choice([0.05, 0.3, 0.5, 0.95])).astype(float)
    if seed % 20 == 7:
        labels[:] = seed % 2
    if seed % 20 == 8:
        scores[:] = 0.25
    return scores, labels, rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("seed", range(CASES))
def test_auroc_and_auprc_are_sklearns(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels, weights = ranking(seed)
    if len(set(labels)) < 2:
        assert math.isnan(roc.auroc(scores, labels))
        assert math.isnan(roc.auprc(scores, labels))
        return
    close(roc.auroc(scores, labels), metrics.roc_auc_score(labels, scores))
    close(roc.auprc(scores, labels), metrics.average_precision_score(labels, scores))
    if len(set(labels[weights > 0])) == 2:
        ours = roc.Ranking(scores, labels)
        keep = weights > 0
        args = {"y_true": labels[keep], "y_score": scores[keep], "sample_weight": weights[keep]}
        close(ours.auroc(weights[None])[0], metrics.roc_auc_score(**args))
        close(ours.auprc(weights[None])[0], metrics.average_precision_score(**args))


@pytest.mark.parametrize("seed", range(CASES))
def test_soft_auroc_is_sklearns_weighted_auroc(seed):
    """Each case once as a positive of weight p and once as a negative of weight 1 - p, less the pairs with itself."""
    metrics = pytest.importorskip("sklearn.metrics")
    scores, _, _ = ranking(seed)
    p = np.random.default_rng(seed).random(len(scores))
    both, labels = np.r_[scores, scores], np.r_[np.ones(len(p)), np.zeros(len(p))]
    total, own = p.sum() * (1 - p).sum(), (p * (1 - p)).sum()
    theirs = metrics.roc_auc_score(labels, both, sample_weight=np.r_[p, 1 - p])
    close(roc.soft_auroc(scores, p), (theirs * total - 0.5 * own) / (total - own))


@pytest.mark.parametrize("seed", range(CASES))
def test_f1_is_sklearns(seed):
    from progemu_jax.eval.metrics.direction import confusion

    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels, _ = ranking(seed)
    tp, fp, fn = (x.sum() for x in confusion(scores, labels))
    if labels.any():
        close(2 * tp / (2 * tp + fp + fn), metrics.f1_score(labels, scores >= 0.5, zero_division=0))


@pytest.mark.parametrize("seed", range(CASES))
def test_pearson_and_kl_are_scipys(seed):
    stats, special = pytest.importorskip("scipy.stats"), pytest.importorskip("scipy.special")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 200))
    x, y = rng.normal(60, 15, n), rng.normal(60, 15, n)
    y = [y, x + 1e-3 * y, -x, np.round(y, -1)][seed % 4]
    if seed % 25 == 3:
        y = np.full(n, 61.3)
        assert math.isnan(retention.pearson(x, y))
        return
    close(retention.pearson(x, y), stats.pearsonr(x, y).statistic)
    p, q = np.clip(rng.random((2, n)), 1e-6, 1 - 1e-6)
    close(divergence.bernoulli_kl(p, q), special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q))
    close(divergence.printed_kl(p, q), special.rel_entr(p, q))
    close(cmig.cmig([p[:2]], [q[:2]])[0], math.sqrt(p[0] * q[0]))
    close(cmig.cmig([*p[:2]], [*q[:3]])[0], math.sqrt(stats.gmean(p[:2]) * stats.gmean(q[:3])))


@pytest.mark.parametrize("seed", range(CASES))
def test_dice_is_sklearns_f1(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 9, 16)) < rng.choice([0.0, 0.02, 0.5, 1.0], (2, 1, 1))
    if not (a.any() or b.any()):
        assert math.isnan(retention.dice(a, b))
        return
    close(retention.dice(a, b), metrics.f1_score(a.ravel(), b.ravel(), zero_division=0))


def pair(seed, least=11):
    """Two uint8 images of one size: noise, an edited copy, constants, identical."""
    rng = np.random.default_rng(seed)
    h, w = (int(x) for x in rng.integers(least, least + 60, 2))
    a = rng.integers(0, 256, (h, w), dtype=np.uint8)
    kind = seed % 5
    b = [
        rng.integers(0, 256, (h, w), dtype=np.uint8),
        np.clip(a + rng.normal(0, 10, (h, w)), 0, 255).astype(np.uint8),
        np.full((h, w), 77, np.uint8),
        a.copy(),
        255 - a,
    ][kind]
    return (np.full((h, w), 30, np.uint8) if seed % 10 == 2 else a), b


@pytest.mark.parametrize("seed", range(CASES))
def test_ssim_and_psnr_are_skimages(seed):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pair(seed)
    _, full = metrics.structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    close(image.ssim(a, b), full[5:-5, 5:-5].mean())
    if (a == b).all():
        assert image.psnr(a, b) == math.inf
    else:
        close(image.psnr(a, b), metrics.peak_signal_noise_ratio(a, b, data_range=255))


@pytest.mark.parametrize("seed", range(CASES))
def test_ms_ssim_is_pytorch_msssims(seed):
    """Windows inside the image at every scale, as in the paper's code. (torchmetrics reflects the coarsest border.)"""
    theirs, torch = pytest.importorskip("pytorch_msssim"), pytest.importorskip("torch")
    a, b = pair(seed, least=176)
    h, w = (s // 16 * 16 for s in a.shape)  # odd sides are pooled differently there
    a, b = a[:h, :w], b[:h, :w]
    x, y = (torch.tensor(i[None, None].astype(np.float64)) for i in (a, b))
    window = pytest.importorskip("scipy.signal").windows.gaussian(11, 1.5)  # theirs is rounded to float32
    win = torch.tensor(window / window.sum())[None, None, None]
    value = theirs.ms_ssim(x, y, data_range=255, win=win, weights=list(image.SCALES)).item()
    close(image.ms_ssim(a, b), value)


@pytest.mark.parametrize("seed", range(CASES))
def test_fid_is_scipys_matrix_square_root(seed):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(seed)
    a, b = np.cov(x.T), np.cov(y.T)
    # The root of the symmetric form: a singular product has no unique square root of its own.
    root = linalg.sqrtm(a + 1e-18 * np.eye(len(a))).real
    cross = np.sqrt(np.maximum(linalg.eigvalsh(root @ b @ root), 0)).sum()
    theirs = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * cross
    close(fidelity.fid(x, y), max(theirs, 0))


@pytest.mark.parametrize("seed", range(CASES))
def test_kid_is_torchmetrics(seed):
    torch = pytest.importorskip("torch")
    import_torchvision()  # torchmetrics imports it
    from torchmetrics.image.kid import poly_mmd

    x, y = features(seed)
    n = min(len(x), len(y))  # theirs wants equal numbers
    value = poly_mmd(torch.tensor(x[:n]), torch.tensor(y[:n]), degree=3, gamma=None, coef=1.0).item()
    close(fidelity.kid(x[:n], y[:n]), value)


@pytest.mark.parametrize("seed", range(CASES))
def test_precision_and_recall_are_sklearns_neighbours(seed):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, y = features(seed)
    if seed % 4 == 0:  # a copy lies exactly on the edge of a ball: rounding decides
        y = y + 1e-3

    def covered(centres, points):
        radius = neighbors.NearestNeighbors(n_neighbors=4).fit(centres).kneighbors(centres)[0][:, 3]
        distance = np.linalg.norm(points[:, None] - centres[None], axis=-1)
        return (distance <= radius).any(1).mean()

    close(fidelity.neighbours(x, y)[:2], (covered(x, y), covered(y, x)))


@pytest.mark.parametrize("seed", range(CASES))
def test_density_and_coverage_are_prdcs(seed):
    prdc = pytest.importorskip("prdc")
    x, y = features(seed)
    if seed % 4 == 0:  # as above
        y = y + 1e-3
    k = min(seed % 5 + 1, min(len(x), len(y)) - 2)  # theirs wants a point more than it uses
    theirs = prdc.compute_prdc(real_features=x, fake_features=y, nearest_k=k)
    close(fidelity.neighbours(x, y, k, k), [theirs[n] for n in ("precision", "recall", "density", "coverage")])


@pytest.mark.parametrize("seed", range(CASES))
def test_the_classifier_of_utility_is_sklearns_ridge(seed):
    models, scaling = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.preprocessing")
    x, test = features(seed)
    if seed % 3 == 0:  # more features than images
        x, test = np.tile(x[:8], 3), np.tile(test, 3)
    labels = np.random.default_rng(seed).random(len(x)) < 0.5
    scale = scaling.StandardScaler().fit(x)
    theirs = models.Ridge(alpha=utility.RIDGE * len(x)).fit(scale.transform(x), 2.0 * labels - 1)
    expected = theirs.predict(scale.transform(test))
    ours = test @ utility.fit(x, labels)
    close(ours - ours.mean(), expected - expected.mean())


@pytest.mark.parametrize("seed", range(CASES))
def test_precision_recall_and_coverage_are_m3_scores(seed):
    """On float32, as M3-Score has it; its coverage counts edges, where only a copy lies."""
    stats, torch = pytest.importorskip("m3score.stats"), pytest.importorskip("torch")
    x, y = features(seed)
    if seed % 4 == 0:  # as above
        y = y + 1e-3
    x, y = x.astype(np.float32), y.astype(np.float32)
    k = seed % 5 + 1
    if min(len(x), len(y)) <= k:
        return
    real, made = torch.tensor(x), torch.tensor(y)
    theirs = *stats.precision_recall(real, made, k), stats.coverage(real, made, k)
    precision, recall, _, coverage = fidelity.neighbours(x, y, k, k)
    close((precision, recall, coverage), theirs)


def sentences(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    made = [" ".join(rng.choice(WORDS, rng.integers(0, 25))) for _ in range(count)]
    reference = [" ".join(rng.choice(WORDS, rng.integers(1, 25))) for _ in range(count)]
    if seed % 3 == 0:
        made = [" ".join([*r.split()[: rng.integers(0, 9)], *m.split()]) for m, r in zip(made, reference, strict=True)]
    if seed % 10 == 1:
        made = list(reference)
    return made, reference


@pytest.mark.parametrize("seed", range(CASES))
def test_bleu_is_sacrebleus_corpus_score(seed):
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    made, reference = sentences(seed)
    counts, _, _ = words.overlap(made, reference)
    for order in range(1, 5):
        theirs = sacrebleu.BLEU(lowercase=True, max_ngram_order=order, smooth_method="none")
        close(words.bleu(counts.sum(0), order), theirs.corpus_score(made, [reference]).score / 100)


@pytest.mark.parametrize("seed", range(CASES))
def test_rouge_and_meteor_against_their_definitions(seed):
    """rouge-score and NLTK make ours; here the longest common subsequence and METEOR's formula, worked out afresh."""
    pytest.importorskip("rouge_score")
    import re

    made, reference = (s[0] for s in sentences(seed))
    a, b = (re.findall(r"[a-z0-9]+", t.lower()) for t in (made, reference))
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    common = table[-1, -1]
    close(words.rouge_l(made, reference), 2 * common / (len(a) + len(b)) if common else 0.0)
    if made == reference and made:
        n = len(words.words(made))
        close(words.meteor_exact_stem(made, reference), 1 - 0.5 * (1 / n) ** 3)  # one chunk of n matches
    if not set(words.words(made)) & set(words.words(reference)):
        assert words.meteor_exact_stem(made, reference) == 0


def test_meteor_by_hand():
    pytest.importorskip("nltk")
    # effusions ~ effusion by stem; 3 matches in two chunks, 3 words made, 4 in the reference.
    precision, recall = 1.0, 3 / 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    value = words.meteor_exact_stem("New effusions left", "new left pleural effusion")
    close(value, mean * (1 - 0.5 * (3 / 3) ** 3))
    assert words.meteor_exact_stem("worsening edema", "pulmonary congestion") == 0  # no synonyms, offline


class TestXrv:
    """The real library with random weights, written as its authors wrote theirs."""

    @pytest.fixture(scope="class")
    def scorer(self, tmp_path_factory):
        import os

        torch = pytest.importorskip("torch")
        torchvision = import_torchvision()
        xrv = pytest.importorskip("torchxrayvision")
        from torchxrayvision.baseline_models import chestx_det, emory_hiti, riken

        from progemu_jax.scorers.xrv import WEIGHTS, XRVScorer

        home = tmp_path_factory.mktemp("home")
        folder = home / ".torchxrayvision" / "models_data"
        folder.mkdir(parents=True)
        before = os.environ.get("HOME")
        os.environ["HOME"] = str(home)
        try:
            torch.manual_seed(0)
            url = xrv.models.model_urls[WEIGHTS]
            names = [n for n in url["labels"]]
            dense = xrv.models.DenseNet(num_classes=len(names))
            torch.save(dense, folder / os.path.basename(url["weights_url"]))
            race = torchvision.models.resnet34(weights=None)
            race.fc = torch.nn.Sequential(torch.nn.Linear(512, 3), torch.nn.LogSoftmax(dim=1))
            state = {f"module.{k}": v for k, v in race.state_dict().items()}
            torch.save(state, folder / "resnet_race_detection_val-loss_0.157_mimic_public.pt")
            age = torch.jit.script(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 320 * 320, 1)))
            age.save(folder / "baseline_models_riken_xray_age_every_model_age_senet154_v2_tl_26_ft_7_fp32.pt")
            state = {f"module.{k}": v for k, v in chestx_det.pspnet(14).state_dict().items()}
            torch.save(state, folder / "pspnet_chestxray_best_model_4.pth")
            yield XRVScorer(), (xrv, emory_hiti, riken)
        finally:
            os.environ["HOME"] = before or ""

    def test_all_four_models_load_and_score(self, scorer):
        import torch

        judge, (xrv, _, _) = scorer
        images = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
        out = judge(images, "mimic_cxr")
        assert set(judge.models) == {"findings", "race", "age", "organs"}
        assert {"Atelectasis", "Cardiomegaly", "Edema", "Pleural Effusion", "Pneumothorax"} <= set(out["findings"])
        assert out["features"].shape == (3, 1024)
        assert out["group_prob"].sum(1) == pytest.approx(1, abs=1e-5)
        assert out["masks"].shape == (3, 6, 64, 8)
        with torch.no_grad():
            x = torch.from_numpy(np.stack([xrv.utils.normalize(i, 255) for i in images])[:, None])
            named = [{"Effusion": "Pleural Effusion"}.get(n, n) for n in judge.models["findings"].targets]
            theirs = judge.models["findings"](x)[:, [named.index(n) for n in out["findings"]]]
            close(out["finding_prob"], theirs.numpy())
            close(out["age"], judge.models["age"](x)[:, 0].numpy())
        assert (out["finding_prob"] >= 0).all()
        assert (out["finding_prob"] <= 1).all()
