"""Config of the published architecture search: on CASIA-WebFace, for a network of 8 cells."""

import math

from easydict import EasyDict

config = EasyDict()
config.dataset = "CASIA-WebFace"
config.rec = "data/faces_webface_112x112"
config.output = "output/search"

config.channel = 16
config.n_layers = 8
config.n_nodes = 4
config.stem_multiplier = 3
config.embedding_size = 128

config.batch_size = 128
config.num_epoch = 50
config.lr = 0.4  # for 512 images per step, so 0.1 for 128
config.momentum = 0.9
config.weight_decay = 3e-4
config.clip_norm = 5.0


def cosine(epoch: int) -> float:
    """Learning-rate factor, from 1 down to 0.04 at num_epoch: from 0.1 to 0.004. Constant in later epochs."""
    return 0.04 + 0.96 * (1 + math.cos(math.pi * min(1, epoch / config.num_epoch))) / 2


config.lr_func = cosine
