"""Report metrics that need a model of their own: CheXbert, RadGraph, GREEN, RadEval's. Optional; used when asked for.

Each comes from its authors' package (f1chexbert, radgraph, green_score, radeval), which downloads its weights on first
use and wants torch; none is installed with this project, and RadEval (torch, stanza, medspacy, datasets) wants an
environment of its own. The texts leave this process only into that package: of RadEval, metrics that ask a service are
not used.

- chexbert_f1: micro F1 of the 14 CheXbert labels of the text against those of the reference (Smit et al. 2020).
- radgraph_f1: mean F1 of entities and relations, reward level "partial" (Jain et al. 2021, Delbrouck et al. 2022).
- green: mean GREEN score (Ostmeier et al. 2024).
- ratescore, radcliq_v1, temporal_f1, srrbert_weighted_f1: means of RadEval's values of each report (Xu et al. 2025).
"""

import numpy as np

from progemu_jax.errors import UserError


def _chexbert(made, reference):
    from f1chexbert import F1CheXbert

    model = F1CheXbert()
    label = {text: np.array(model.get_label(text)) == 1 for text in {*made, *reference}}
    a, b = (np.array([label[t] for t in texts]) for texts in (made, reference))
    hit, total = (a & b).sum(1), a.sum(1) + b.sum(1)
    return {"chexbert_f1": (2.0 * hit, total.astype(np.float64))}


def _radgraph(made, reference):
    from radgraph import F1RadGraph

    return {"radgraph_f1": _mean(F1RadGraph(reward_level="partial")(hyps=made, refs=reference)[1], made)}


def _green(made, reference):
    from green_score import GREEN

    # No figures and no files: only the list of scores is used.
    return {"green": _mean(GREEN("StanfordAIMI/GREEN-radllama2-7b", output_dir=None)(reference, made)[2], made)}


def _radeval(made, reference):
    from radeval import RadEval

    found = RadEval(metrics=list(RADEVAL), per_sample=True)(refs=reference, hyps=made)
    return {key: _mean(found[key], made) for key in RADEVAL.values()}


def _mean(values, made):
    values = np.asarray(values, np.float64)
    if values.shape != (len(made),):
        raise ValueError(f"{values.shape} scores for {len(made)} texts")
    return values, np.ones(len(made))


RADEVAL = {  # RadEval's name of a metric -> the key under which it gives a value for each report
    "ratescore": "ratescore", "radcliq": "radcliq_v1", "temporal": "temporal_f1", "srrbert": "srrbert_weighted_f1",
}  # fmt: skip
MODELS = {
    "chexbert": ("f1chexbert", _chexbert), "radgraph": ("radgraph", _radgraph), "green": ("green_score", _green),
    "radeval": ("radeval", _radeval),
}  # fmt: skip


def ratios(names, made, reference):
    """metric -> (numerator float [N], denominator float [N]) of the models asked for.

    Args:
      names: of MODELS.
      made, reference: lists of N texts.

    Raises:
      UserError: an unknown model, one whose package is not installed, or whose weights cannot be had.
    """
    out = {}
    for name in names:
        if name not in MODELS:
            raise UserError(f"text model {name!r} is unknown; choose among {', '.join(MODELS)}")
        package, function = MODELS[name]
        try:
            out.update(function(list(made), list(reference)))
        except ImportError as error:
            raise UserError(
                f"text model {name}: the package {package} is not there ({error.name}); install it"
            ) from None
        except Exception as error:  # the package's own: a download that fails, a GPU it wants
            line = (str(error).strip() or "?").splitlines()[0]
            raise UserError(f"text model {name}: {package} failed ({type(error).__name__}: {line})") from None
    return out
