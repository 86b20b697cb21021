"""A small PocketNet on drawn faces, trained in minutes on two CPU cores: make demo."""

from easydict import EasyDict

config = EasyDict()
config.dataset = "faces_demo"
config.rec = "data/faces_demo"  # 4,000 images of 200 people, drawn by data/make_demo_faces.py
config.val_targets = ["demo"]  # 1,500 pairs of 60 other people

config.net_name = "PocketNet"
config.channel = 8
config.n_layers = 6
config.embedding_size = 128

# Gentler than for MS1MV2: an eighth of the steps of one of its epochs has to do, and 200 classes are few.
config.s = 32.0
config.m = 0.3
config.batch_size = 32
config.lr = 0.8  # 0.05 at this batch size
config.num_epoch = 3
config.lr_steps = [2]

config.output = "output/demo"
config.save_initial = True  # so that the table shows the untrained network too
config.eval_step = 0  # eval/eval.py scores every epoch
config.log_step = 25
