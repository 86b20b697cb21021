"""All config fields with their defaults and meaning. A config file sets only the fields that differ.

The type of a default is the type of the field. Fields of the published code keep their names and meaning. Paths in a
config file are relative to the project's folder, paths on the command line to the working folder; "~" is the home
folder.
"""

from easydict import EasyDict

from backbones.genotypes import SEARCH_SPACE, SOFTMAX_CASIA, SOFTMAX_CIFAR10

config = EasyDict()

# --- data
config.dataset = "emoreIresNet"  # name of the data set, a note for people
config.rec = "data/faces_emore"  # folder of train.rec, train.idx, property and the verification sets (*.bin)
config.data_source = "recordio"  # kind of rec: recordio, or cifar10 (the folder that torchvision reads)
config.num_classes = 0  # number of identities; 0: as in the files
config.num_image = 0  # number of images; 0: as in the files
config.val_targets = ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"]  # verification sets: {rec}/{name}.bin
config.on_bad_image = "error"  # for unreadable images; or skip: repeat another image of the batch instead
config.workers = 2  # loader processes per training process; 0: load in the training process

# --- backbone
config.net_name = "PocketNet"  # PocketNet (sized by the fields below), or another of BACKBONES (utils/registry.py)
config.embedding_size = 128
config.channel = 16  # PocketNet: channels of the first stage (S: 16, M: 32)
config.n_layers = 18  # PocketNet: number of cells (S: 18, M: 9)
config.stem_multiplier = 4  # PocketNet: the stem has stem_multiplier · channel channels
config.genotypes = {"softmax_cifar10": SOFTMAX_CIFAR10, "softmax_casia": SOFTMAX_CASIA}
config.genotype = "softmax_casia"  # PocketNet: one of the names in genotypes

# --- loss and its header
config.loss = "arcface"  # margin of the classification loss; one of LOSSES (utils/registry.py)
config.s = 64.0  # scale of the logits
config.m = 0.5  # additive angular margin in radians
config.head = "whole"  # or sharded: classes split over all ranks, if they exceed the memory of a GPU (docs/scaling.md)
config.sample_rate = 1.0  # head=sharded: fraction of the classes used in a step (Partial FC)

# --- optimisation
config.optimizer = (
    "sgd"  # one of OPTIMIZERS (utils/registry.py): sgd as published, or adamw (lr=1e-3 weight_decay=5e-2)
)
config.num_epoch = 26
config.batch_size = 128  # images per process
config.lr = 0.1  # for 512 images per step; training uses lr · batch_size · processes / 512
config.momentum = 0.9  # of sgd
config.weight_decay = 5e-4
config.clip_norm = 5.0  # maximum L2 norm of the backbone's gradient; 0: no clipping
config.warmup_epoch = -1  # earlier epochs (from 0) use the learning-rate factor ((epoch + 1) / 5)²
config.lr_steps = [7, 13, 19, 24]  # epochs (from 0) that divide the learning rate by 10
config.lr_func = None  # function: epoch to learning-rate factor; None: from warmup_epoch and lr_steps
config.max_steps = 0  # stop after this many steps; 0: after num_epoch epochs
config.seed = 0  # for initial weights, image order and horizontal flips
config.precision = "fp32"  # fp32, bf16 or fp16 (the header and the loss are always float32)
config.max_bad_steps = 20  # stop after so many consecutive steps with a non-finite loss or gradient, which are skipped
config.compile = False  # torch.compile the backbone: takes minutes at the start, then faster steps

# --- output
config.output = "output/PocketNet"  # checkpoints {global_step}backbone.pth, {global_step}header.pth, training.log
config.global_step = 0  # step of the published files to resume from with --resume 1
config.resume = "auto"  # auto: from checkpoint.pth if output has one; 1: also from global_step; 0: train from the start
config.save_step = 200  # steps between checkpoints (checkpoint.pth), which are also written after each epoch
config.keep = 2  # number of checkpoints kept, in case the last is damaged
config.save_initial = False  # also save the untrained network, as 0backbone.pth
config.log_dir = "logs"  # TensorBoard files: {log_dir}/NAME for output/NAME (logs/README.md has the full rule)
config.timeout = 1800  # seconds without an answer after which a process counts as hung
config.log_step = 50  # steps between log lines
config.eval_step = 5686  # steps between verifications during training; 0: never
config.eval_batch = 128  # batch size of evaluation
config.eval_runtime = "auto"  # on a CPU: openvino (5 times as fast), torch, or auto: openvino if installed
config.test_output = ""  # folder for test.log and results.json of eval.py; empty: output, or output/eval/…

# --- architecture search (NAS/config.py has the published values)
config.search_space = list(SEARCH_SPACE)  # operations of each edge; names of OPERATIONS (utils/registry.py)
config.n_nodes = 4  # nodes per cell
config.second_order = True  # alpha gradient through one weight step (DARTS); False: first order, half the time
config.alpha_gradient = "validation"  # or published: plus the training gradient, as in the published code
config.alpha_lr = 1.2e-3  # Adam
config.alpha_betas = [0.5, 0.999]
config.alpha_weight_decay = 1e-3
config.cost_weight = 0.0  # weight, in the alpha loss, of expected multiply-adds relative to those of equal weights
config.skip_limit = -1  # maximum number of skip_connect in the derived normal cell; -1: any
config.search_eval = 1000  # images of each half for the accuracies after each epoch; 0: none

# --- knowledge distillation
config.w = 100.0  # weight of the distillation loss: ArcFace + w · MSE of the normalised embeddings
config.teacher_pth = ""  # teacher: folder of checkpoints, a checkpoint, or an ONNX file (RGB in [-1, 1])
config.teacher_global_step = 0  # step of the checkpoint in that folder
config.multi_step = False  # use the teacher's checkpoint of the same epoch; or ./train_kd.sh --multi-step
config.teacher_network = "iresnet100"  # as net_name; PocketNetS and PocketNetM set the size
config.teacher_channel = 0  # PocketNet teacher: as channel; 0: from teacher_network, otherwise the student's
config.teacher_n_layers = 0  # as teacher_channel, for n_layers
config.teacher_genotype = ""  # PocketNet teacher: as genotype; empty: the student's
config.teacher_precision = "fp32"  # fp32, bf16 or fp16
config.teacher_cache = ""  # folder to cache the teacher's embeddings for later epochs and runs; empty: no cache

# --- initial weights (train.py and train_kd.py)
config.student_pth = ""  # folder of {student_global_step}backbone.pth, or a weights file; empty: random weights
config.student_global_step = 0  # step of the weights in that folder
config.student_header = False  # also load {student_global_step}header.pth, with the same number of classes
