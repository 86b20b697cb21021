"""Published results in % of PocketNets trained on MS1MV2 with multi-step knowledge distillation.

Source: Boutros et al., IEEE Access 2022 (arXiv 2108.10710), comparison with compact models. Verification accuracy; for
IJB, TAR at FAR 1e-4.
CFP-FP of PocketNetM-256 is that of the authors' figure; later papers that cite it have 95.66.
"""

from backbones.genotypes import SOFTMAX_CASIA, parse_genotype
from backbones.names import resolve_network_name
from config.base import Config
from utils.registry import BACKBONES

_SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "IJBB", "IJBC")
_RESULTS = {  # keys: (channel, n_layers, embedding_size); values in the order of _SETS
    (16, 18, 128): (99.58, 94.21, 96.10, 95.48, 89.63, 89.44, 91.62),
    (16, 18, 256): (99.66, 93.34, 96.35, 95.50, 88.93, 89.31, 91.33),
    (32, 9, 128): (99.65, 95.07, 96.78, 95.67, 90.00, 90.63, 92.63),
    (32, 9, 256): (99.58, 95.56, 97.17, 95.63, 90.03, 90.74, 92.70),
}


def published_result(config: Config, name: str) -> float | None:
    """Returns the published result in % of the config's network on the named set, or None if there is none.

    A published network is recognised by its cells and sizes, not by its name.
    """
    size = (config.channel, config.n_layers, config.embedding_size)
    has_cells = "genotype" in BACKBONES[resolve_network_name(config.net_name)].fields
    if not has_cells or size not in _RESULTS or name not in _SETS:
        return None
    if parse_genotype(config.genotypes[config.genotype]) != parse_genotype(SOFTMAX_CASIA):
        return None
    return _RESULTS[size][_SETS.index(name)]
