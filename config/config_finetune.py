"""Fine-tunes PocketNetS-128 on your own photos, which data/pack.py has packed into data/mine: docs/own_photos.md.

Name the published weights: ./train.sh --config config/config_finetune.py student_pth=WEIGHTS.pth
"""

from easydict import EasyDict

config = EasyDict()
config.net_name = "PocketNetS"
config.embedding_size = 128
config.channel = 16
config.n_layers = 18
config.freeze = "stem,cells.0-8"

config.rec = "data/mine"
config.val_targets = ["val"]  # pairs of the people held out
config.output = "output/mine"

config.batch_size = 32
config.lr = 0.016  # 0.001 at this batch size
config.num_epoch = 2
config.lr_steps = [1]
config.eval_step = 0  # eval/eval.py evaluates all epochs
