"""Report metrics that need a model of their own: CheXbert, RadGraph, GREEN. Optional; used when asked for.

Each comes from its authors' package (f1chexbert, radgraph, green_score), which downloads its weights on first use
and wants torch; none is installed with this project. The texts leave this process only into that package.

- chexbert_f1: micro F1 of the 14 CheXbert labels of the text against those of the reference (Smit et al. 2020).
- radgraph_f1: mean F1 of entities and relations, reward level "partial" (Jain et al. 2021, Delbrouck et al. 2022).
- green: mean GREEN score (Ostmeier et al. 2024).
"""

import numpy as np

from progemu_jax.errors import UserError


def _chexbert(made, reference):
    from f1chexbert import F1CheXbert

    model = F1CheXbert()
    label = {text: np.array(model.get_label(text)) == 1 for text in {*made, *reference}}
    a, b = (np.array([label[t] for t in texts]) for texts in (made, reference))
    hit, total = (a & b).sum(1), a.sum(1) + b.sum(1)
    return "chexbert_f1", (2.0 * hit, total.astype(np.float64))


def _radgraph(made, reference):
    from radgraph import F1RadGraph

    return "radgraph_f1", _mean(F1RadGraph(reward_level="partial")(hyps=made, refs=reference)[1], made)


def _green(made, reference):
    from green_score import GREEN

    # No figures and no files: only the list of scores is used.
    return "green", _mean(GREEN("StanfordAIMI/GREEN-radllama2-7b", output_dir=None)(reference, made)[2], made)


def _mean(values, made):
    values = np.asarray(values, np.float64)
    if values.shape != (len(made),):
        raise ValueError(f"{values.shape} scores for {len(made)} texts")
    return values, np.ones(len(made))


MODELS = {"chexbert": ("f1chexbert", _chexbert), "radgraph": ("radgraph", _radgraph), "green": ("green_score", _green)}


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
            key, value = function(list(made), list(reference))
        except ImportError as error:
            raise UserError(
                f"text model {name}: the package {package} is not there ({error.name}); install it"
            ) from None
        except Exception as error:  # the package's own: a download that fails, a GPU it wants
            line = (str(error).strip() or "?").splitlines()[0]
            raise UserError(f"text model {name}: {package} failed ({type(error).__name__}: {line})") from None
        out[key] = value
    return out
