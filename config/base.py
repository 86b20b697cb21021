"""Every field of a config: its default, and what it means. A config file holds only what differs from this.

The type of a default is the type of the field. Fields of the published code keep their names and meaning. Relative
paths in a config file count from the project's folder, those typed on the command line from the working folder; "~" is
the home folder.
"""

from easydict import EasyDict

from backbones.genotypes import SOFTMAX_CASIA, SOFTMAX_CIFAR10

config = EasyDict()

# --- data
config.dataset = "emoreIresNet"  # a name for the data set, for people
config.rec = "data/faces_emore"  # folder of train.rec, train.idx, property and the verification sets (*.bin)
config.num_classes = 0  # identities; 0: as many as the files hold
config.num_image = 0  # images; 0: as many as the files hold
config.val_targets = ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"]  # verification sets: {rec}/{name}.bin
config.on_bad_image = "error"  # of an image that cannot be read; or skip: another of its batch stands twice
config.workers = 2  # loader worker processes for each training process; 0: load in the training process

# --- backbone
config.net_name = "PocketNet"  # PocketNet (size by the fields below), or iresnet18, 34, 50, 100 (backbones/names.py)
config.embedding_size = 128
config.channel = 16  # PocketNet: channels of the first stage (S: 16, M: 32)
config.n_layers = 18  # PocketNet: number of cells (S: 18, M: 9)
config.stem_multiplier = 4  # PocketNet: the stem has stem_multiplier · channel channels
config.genotypes = {"softmax_cifar10": SOFTMAX_CIFAR10, "softmax_casia": SOFTMAX_CASIA}
config.genotype = "softmax_casia"  # PocketNet: which of the genotypes

# --- ArcFace header
config.s = 64.0  # scale of the logits
config.m = 0.5  # additive angular margin in radians
config.head = "whole"  # or sharded: its classes split over the processes, for more than a GPU holds (docs/scaling.md)
config.sample_rate = 1.0  # of a sharded head: the share of the classes that takes part in a step (Partial FC)

# --- optimisation (SGD)
config.num_epoch = 26
config.batch_size = 128  # images for each process
config.lr = 0.1  # for 512 images a step: lr · (batch_size · processes) / 512 is used
config.momentum = 0.9
config.weight_decay = 5e-4
config.clip_norm = 5.0  # the backbone's gradient is scaled down to this L2 norm; 0: never
config.warmup_epoch = -1  # epochs below it run at ((epoch + 1) / 5)²
config.lr_steps = [7, 13, 19, 24]  # epochs (from 0) at which the learning rate falls to a tenth
config.lr_func = None  # factor of the learning rate by epoch; None: made of warmup_epoch and lr_steps
config.max_steps = 0  # stop after this many steps; 0: after num_epoch epochs
config.seed = 0  # of the weights, the order of the images and their mirroring
config.precision = "fp32"  # fp32, bf16 or fp16 (the header and the loss are always float32)
config.max_bad_steps = 20  # stop after so many steps in a row whose loss or gradient is not finite (each is left out)
config.compile = False  # torch.compile the backbone: minutes at the start, faster steps

# --- output
config.output = "output/PocketNet"  # checkpoints {global_step}backbone.pth, {global_step}header.pth, training.log
config.global_step = 0  # the step whose published files a run goes on from with --resume 1
config.resume = "auto"  # auto: go on from checkpoint.pth where output has one; 1: or from global_step; 0: train anew
config.save_step = 200  # steps between two writings of checkpoint.pth, which also every epoch has
config.keep = 2  # so many of them are kept, should the last be damaged
config.save_initial = False  # keep the untrained network too, as 0backbone.pth
config.log_dir = "logs"  # TensorBoard files: of output/NAME in {log_dir}/NAME (logs/README.md says of others)
config.timeout = 1800  # seconds after which a process that does not answer the others is taken to hang
config.log_step = 50  # steps between two lines of the log
config.eval_step = 5686  # steps between two verifications while training; 0: never
config.eval_batch = 128  # images at once in evaluation
config.eval_runtime = "auto"  # evaluation on a CPU: openvino where installed (5 times as fast), torch, or auto
config.test_output = ""  # folder for test.log and results.json of eval.py; empty: output, or output/eval/…

# --- search (NAS/config.py holds the published values)
config.search_data = "faces"  # what rec is: faces, a RecordIO folder; cifar10, as torchvision keeps it
config.n_nodes = 4  # nodes of a cell
config.second_order = True  # alphas' gradient through a step of the weights (DARTS); False: first order, half the time
config.alpha_gradient = "validation"  # or published: the training gradient added to it, as the published code does
config.alpha_lr = 1.2e-3  # Adam
config.alpha_betas = [0.5, 0.999]
config.alpha_weight_decay = 1e-3
config.cost_weight = 0.0  # of the expected multiply-adds, relative to those of equal weights, in the alphas' loss
config.skip_limit = -1  # at most so many skip_connect in the derived normal cell; -1: any number
config.search_eval = 1000  # images of each half that accuracies are measured on after each epoch; 0: none

# --- knowledge distillation
config.w = 100.0  # weight of the distillation loss: ArcFace + w · MSE of the normalised embeddings
config.teacher_pth = ""  # folder of the teacher's checkpoints, one file of them, or ONNX (RGB in [-1, 1])
config.teacher_global_step = 0  # which of them
config.multi_step = False  # each epoch has the teacher's own checkpoint of it; or ./train_kd.sh --multi-step
config.teacher_network = "iresnet100"  # as net_name; PocketNetS and PocketNetM stand for those sizes
config.teacher_channel = 0  # PocketNet as the teacher: as channel; 0: by teacher_network's size, or the student's
config.teacher_n_layers = 0  # the same of n_layers
config.teacher_genotype = ""  # the same of genotype; empty: the student's
config.teacher_precision = "fp32"  # fp32, bf16 or fp16
config.teacher_cache = ""  # folder that keeps the teacher's embeddings for later epochs and runs; empty: none are kept

# --- start from weights: train.py and train_kd.py
config.student_pth = ""  # folder of {student_global_step}backbone.pth, or a file of weights; empty: random weights
config.student_global_step = 0
config.student_header = False  # start the header from {student_global_step}header.pth too; its classes must be as many
