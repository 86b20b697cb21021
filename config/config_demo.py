"""A small PocketNet on synthetic faces, which trains in minutes on two CPU cores: make demo."""

from easydict import EasyDict

config = EasyDict()
config.dataset = "faces_demo"
config.rec = "data/faces_demo"  # 4,000 images of 200 identities, made by data/make_demo_faces.py
config.val_targets = ["demo"]  # 1,500 pairs of 60 other identities

config.net_name = "PocketNet"
config.channel = 8
config.n_layers = 6
config.embedding_size = 128

# Scale and margin are lower than for MS1MV2: there are 200 classes, and fewer steps than an eighth of an epoch of it.
config.s = 32.0
config.m = 0.3
config.batch_size = 32
config.lr = 0.8  # 0.05 at this batch size
config.num_epoch = 3
config.lr_steps = [2]

config.output = "output/demo"
config.save_initial = True  # the results table also shows the untrained network
config.eval_step = 0  # eval/eval.py evaluates all epochs
config.log_step = 25
