"""Names of networks, as in the config fields net_name and teacher_network."""

import re

from utils.errors import UserError
from utils.registry import BACKBONES

# Spellings in published configs: PocketNetS-128, PocketNetM256, resnet100; "DartFaceNet", an older name of PocketNet;
# "resnet", the default teacher of the published command line, an IResNet-100.
_ALIASES = (
    (re.compile(r"dartfacenet"), "pocketnet"),
    (re.compile(r"(pocketnet[sm]?)(128|256|512)"), r"\1"),
    (re.compile(r"i?resnet"), "iresnet100"),
    (re.compile(r"resnet(\d+)"), r"iresnet\1"),
)


def resolve_network_name(name: str) -> str:
    """Returns the key of BACKBONES that a name means, ignoring case, "-" and "_".

    Raises UserError, which lists the known names, if there is none.
    """
    spelling = re.sub("[-_]", "", name.lower())
    known = {re.sub("[-_]", "", key.lower()): key for key in BACKBONES}
    if spelling in known:
        return known[spelling]
    for pattern, replacement in _ALIASES:
        if match := pattern.fullmatch(spelling):
            spelling = match.expand(replacement)
            break
    if spelling not in known:
        raise UserError(f"{name!a:.80} is not a known network", fix=f"known are {', '.join(BACKBONES)}")
    return known[spelling]
