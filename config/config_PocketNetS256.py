"""PocketNetS-256 on MS1MV2: 991,424 parameters, 587.24 MFLOPs. Copy to config/config.py to use it."""

from easydict import EasyDict

config = EasyDict()
config.net_name = "PocketNetS"
config.embedding_size = 256
config.channel = 16
config.n_layers = 18
config.output = "output/PocketNetS256"

# Counts of MS1MV2. Loading the data checks the files against them.
config.rec = "data/faces_emore"
config.num_classes = 85742
config.num_image = 5822653
config.val_targets = ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"]

config.teacher_pth = "output/iresnet100_256"
config.teacher_network = "iresnet100"
config.teacher_global_step = 295672
