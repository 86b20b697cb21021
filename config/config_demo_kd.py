"""A student of 174,496 parameters on synthetic faces, taught by the network of config_demo.py: make demo-kd."""

from easydict import EasyDict

config = EasyDict()
config.dataset = "faces_demo"
config.rec = "data/faces_demo"
config.val_targets = ["demo"]

config.net_name = "PocketNet"
config.channel = 4
config.n_layers = 4
config.embedding_size = 128

config.s = 32.0
config.m = 0.3
config.batch_size = 32
config.lr = 0.8
config.num_epoch = 4
config.lr_steps = [3]

config.output = "output/demo_kd/student"
config.eval_step = 0
config.log_step = 25

config.w = 1000.0  # 100, as for MS1MV2, gives half the gain
config.teacher_pth = "output/demo_kd/teacher"
config.teacher_global_step = 500
config.teacher_network = "PocketNet"
config.teacher_channel = 8
config.teacher_n_layers = 6
config.teacher_cache = "output/demo_kd/cache"
