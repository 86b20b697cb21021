"""Names of networks, as in the config fields net_name and teacher_network."""

import re
from typing import NamedTuple

from utils.errors import UserError

NET_NAMES = ("PocketNet", "PocketNetS", "PocketNetM", "iresnet18", "iresnet34", "iresnet50", "iresnet100")
SIZES = {"s": (16, 18), "m": (32, 9)}  # channel and n_layers of PocketNetS and PocketNetM
# Also accepts names in published configs: PocketNetS-128, PocketNetM256, resnet100; "DartFaceNet", an older name of
# PocketNet; "resnet", the default teacher of the published command line, an IResNet-100.
_POCKETNET = re.compile(r"pocketnet[-_]?([sm]?)[-_]?(128|256|512)?|dartfacenet", re.IGNORECASE)
_IRESNET = re.compile(r"i?resnet[-_]?(18|34|50|100)?", re.IGNORECASE)


class NetworkName(NamedTuple):
    """Kind and size of a network, parsed from its name."""

    depth: int  # depth of an IResNet; 0: a PocketNet
    size: str  # "s" or "m" if the name of a PocketNet has a size, otherwise empty


def parse_network_name(name: str) -> NetworkName:
    """Parses the name of a network, ignoring case. Raises UserError, which lists the known names, for any other."""
    if match := _IRESNET.fullmatch(name):
        return NetworkName(int(match[1] or 100), "")
    if match := _POCKETNET.fullmatch(name):
        return NetworkName(0, (match[1] or "").lower())
    raise UserError(f"{name!a:.80} is not a known network", fix=f"known are {', '.join(NET_NAMES)}")
