"""PocketNetS-128 on MS1MV2: 925,632 parameters, 587.11 MFLOPs. Copy to config/config.py to use it."""

from easydict import EasyDict

config = EasyDict()
config.net_name = "PocketNetS"
config.embedding_size = 128
config.channel = 16
config.n_layers = 18
config.output = "output/PocketNetS128"

# Counts of MS1MV2. Loading the data checks the files against them.
config.rec = "data/faces_emore"
config.num_classes = 85742
config.num_image = 5822653
config.val_targets = ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"]

config.teacher_pth = "output/iresnet100_128"
config.teacher_network = "iresnet100"
config.teacher_global_step = 295672
