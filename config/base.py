"""All config fields with their types, defaults and meaning. A config file sets only the fields that differ.

Fields of the published code keep their names and meaning. Paths in a config file are relative to the project's folder,
paths on the command line to the working folder; "~" is the home folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backbones.genotypes import SEARCH_SPACE, SOFTMAX_CASIA, SOFTMAX_CIFAR10

# Fields of earlier versions: new name, and new names of their values.
RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "search_data": ("data_source", {"faces": "recordio"}),
    "head": ("header", {"whole": "replicated"}),
}
TEACHER = "teacher"  # value of header_from that stands for the teacher's header; any other value is a path


@dataclass
class Config:
    """The checked config of a command, made by `config.load_config`."""

    # --- device
    device: str = "auto"  # cuda: a GPU for each process; cpu; auto: cuda if there is a GPU

    # --- data
    dataset: str = "emoreIresNet"  # name of the data set, a note for people
    rec: str = "data/faces_emore"  # folder of train.rec, train.idx, property and the verification sets (*.bin)
    data_source: str = "recordio"  # kind of rec: recordio, or cifar10 (the folder that torchvision reads)
    num_classes: int = 0  # number of identities; 0: as in the files
    num_image: int = 0  # number of images; 0: as in the files
    # verification sets: {rec}/{name}.bin
    val_targets: list[str] = field(default_factory=lambda: ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"])
    on_bad_image: str = "error"  # for unreadable images; or skip: repeat another image of the batch instead
    workers: int = 2  # loader processes per training process; 0: load in the training process

    # --- backbone
    net_name: str = "PocketNet"  # PocketNet (sized by the fields below), or another of BACKBONES (utils/registry.py)
    embedding_size: int = 128
    channel: int = 16  # PocketNet: channels of the first stage (S: 16, M: 32)
    n_layers: int = 18  # PocketNet: number of cells (S: 18, M: 9)
    stem_multiplier: int = 4  # PocketNet: the stem has stem_multiplier · channel channels
    genotypes: dict[str, str] = field(
        default_factory=lambda: {"softmax_cifar10": SOFTMAX_CIFAR10, "softmax_casia": SOFTMAX_CASIA}
    )
    genotype: str = "softmax_casia"  # PocketNet: one of the names in genotypes

    # --- loss and its header
    # margin of the classification loss: arcface as published, cosface, adaface (docs/recipes.md), … (LOSSES)
    loss: str = "arcface"
    s: float = 64.0  # scale of the logits
    # margin of any loss. Their papers have: arcface 0.5 (radians), cosface 0.35 (of the cosine), adaface 0.4 (of both)
    m: float = 0.5
    # replicated, or sharded: classes split over all ranks, if they exceed the memory of a GPU (docs/scaling.md)
    header: str = "replicated"
    sample_rate: float = 1.0  # header=sharded: fraction of the classes used in a step (Partial FC)
    # file {step}header.pth, of the same identities, that the header starts from; or teacher: its own; empty: random
    header_from: str = ""
    header_frozen: bool = False  # keep the header as loaded, and train the backbone alone (docs/recipes.md)

    # --- optimisation
    optimizer: str = "sgd"  # sgd as published, adamw (lr=1e-3 weight_decay=5e-2), … (OPTIMIZERS in utils/registry.py)
    num_epoch: int = 26
    batch_size: int = 128  # images per process
    lr: float = 0.1  # for 512 images per step; training uses lr · batch_size · processes / 512
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4
    clip_norm: float = 5.0  # maximum L2 norm of the backbone's gradient; 0: no clipping
    warmup_epoch: int = -1  # earlier epochs (from 0) use the learning-rate factor ((epoch + 1) / 5)²
    # epochs (from 0) that divide the learning rate by 10
    lr_steps: list[int] = field(default_factory=lambda: [7, 13, 19, 24])
    # function: epoch to learning-rate factor; None: from warmup_epoch and lr_steps
    lr_func: Callable[[int], float] | None = None
    max_steps: int = 0  # stop after this many steps; 0: after num_epoch epochs
    seed: int = 0  # for initial weights, image order and horizontal flips
    # fp32, tf32 (coarser, faster convolutions on NVIDIA GPUs), bf16 or fp16; the header and the loss are always float32
    precision: str = "fp32"
    # stop after so many consecutive steps with a non-finite loss or gradient, which are skipped
    max_bad_steps: int = 20
    compile: bool = False  # torch.compile the backbone: the first run takes minutes at its start, then faster steps

    # --- output
    output: str = "output/PocketNet"  # checkpoints {global_step}backbone.pth, {global_step}header.pth, training.log
    global_step: int = 0  # step of the published files to resume from with --resume 1
    # auto: from checkpoint.pth if output has one; 1: also from global_step; 0: train from the start
    resume: str = "auto"
    save_step: int = 200  # steps between checkpoints (checkpoint.pth), which are also written after each epoch
    keep: int = 2  # number of checkpoints kept, in case the last is damaged
    save_initial: bool = False  # also save the untrained network, as 0backbone.pth
    log_dir: str = "logs"  # TensorBoard files: {log_dir}/NAME for output/NAME (logs/README.md has the full rule)
    timeout: int = 1800  # seconds without an answer after which a process counts as hung
    log_step: int = 50  # steps between log lines
    eval_step: int = 5686  # steps between verifications during training; 0: never
    eval_batch: int = 128  # batch size of evaluation
    eval_runtime: str = "auto"  # on a CPU: openvino (5 times as fast), torch, or auto: openvino if installed
    test_output: str = ""  # folder for test.log and results.json of eval.py; empty: output, or output/eval/…

    # --- architecture search (NAS/config.py has the published values)
    # operations of each edge; names of OPERATIONS (utils/registry.py)
    search_space: list[str] = field(default_factory=lambda: list(SEARCH_SPACE))
    n_nodes: int = 4  # nodes per cell
    second_order: bool = True  # alpha gradient through one weight step (DARTS); False: first order, half the time
    alpha_gradient: str = "validation"  # or published: plus the training gradient, as in the published code
    alpha_lr: float = 1.2e-3  # Adam
    alpha_betas: list[float] = field(default_factory=lambda: [0.5, 0.999])
    alpha_weight_decay: float = 1e-3
    cost_weight: float = 0.0  # weight, in the alpha loss, of expected multiply-adds relative to those of equal weights
    # weight, in the alpha loss, of Beta-decay, which evens the alphas (arXiv 2203.01665, there 50); in epoch e it is
    # beta_decay · e / num_epoch
    beta_decay: float = 0.0
    skip_limit: int = -1  # maximum number of skip_connect in the derived normal cell; -1: any
    search_eval: int = 1000  # images of each half for the accuracies after each epoch; 0: none

    # --- knowledge distillation
    # mse as published; or adadistill: class centres are moving averages of the teacher's embeddings (docs/recipes.md)
    distill: str = "mse"
    w: float = 100.0  # of distill=mse, weight of its loss: ArcFace + w · MSE of the normalised embeddings
    teacher_pth: str = ""  # teacher: folder of checkpoints, a checkpoint, or an ONNX file (RGB in [-1, 1])
    teacher_global_step: int = 0  # step of the checkpoint in that folder
    multi_step: bool = False  # use the teacher's checkpoint of the same epoch; or ./train_kd.sh --multi-step
    teacher_network: str = "iresnet100"  # as net_name; PocketNetS and PocketNetM set the size
    teacher_channel: int = 0  # PocketNet teacher: as channel; 0: from teacher_network, otherwise the student's
    teacher_n_layers: int = 0  # as teacher_channel, for n_layers
    teacher_genotype: str = ""  # PocketNet teacher: as genotype; empty: the student's
    teacher_precision: str = "fp32"  # fp32, bf16 or fp16
    teacher_cache: str = ""  # folder to cache the teacher's embeddings for later epochs and runs; empty: no cache

    # --- initial weights and fine-tuning (train.py and train_kd.py)
    student_pth: str = ""  # folder of {student_global_step}backbone.pth, or a weights file; empty: random weights
    student_global_step: int = 0  # step of the weights in that folder
    student_header: bool = False  # also load {student_global_step}header.pth, with the same number of classes
    # modules of the backbone that stay as loaded, with their running statistics: stem,cells.0-8; empty: none
    freeze: str = ""

    # --- origin of the values, for messages; not fields of a config file
    set_by: dict[str, str] = field(default_factory=dict)  # source of each field that was set: "file", "command line"
    without_effect: list[str] = field(default_factory=list)  # names in the config file that are not fields

    def lr_factor(self, epoch: int) -> float:
        """Returns the factor of the learning rate in an epoch: that of lr_func, or else of the published schedule.

        The published schedule divides by 10 at each of lr_steps, after an optional warm-up.
        """
        if self.lr_func is not None:
            return self.lr_func(epoch)
        if epoch < self.warmup_epoch:
            return ((epoch + 1) / 5) ** 2
        return 0.1 ** sum(epoch >= step for step in self.lr_steps)

    def to_dict(self) -> dict[str, Any]:
        """Returns the value of every field by name, without copying it."""
        return {name: value for name, value in vars(self).items() if name not in ("set_by", "without_effect")}


def rename_field(name: str, value: Any) -> tuple[str, Any]:
    """Returns name and value of a field as they are called now. An earlier version may have called them otherwise."""
    if name not in RENAMED:
        return name, value
    new_name, values = RENAMED[name]
    return new_name, values.get(value, value) if isinstance(value, str) else value
