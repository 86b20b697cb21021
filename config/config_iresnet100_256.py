"""The teacher: IResNet-100 with embeddings of 256, on MS1MV2. Copy to config/config.py to use it."""

from easydict import EasyDict

config = EasyDict()
config.net_name = "iresnet100"
config.embedding_size = 256
config.output = "output/iresnet100_256"

# Counts of MS1MV2. Loading the data checks the files against them.
config.rec = "data/faces_emore"
config.num_classes = 85742
config.num_image = 5822653
config.val_targets = ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"]
