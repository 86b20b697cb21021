"""The global batch and the learning rate that follows from it."""

from config.base import Config

REFERENCE_BATCH = 512  # images per step for which config.lr is given: 4 processes of 128 images, as published


def global_batch_size(config: Config, processes: int) -> int:
    """Returns the number of images per step over all processes."""
    return config.batch_size * processes


def learning_rate(config: Config, processes: int, epoch: int) -> float:
    """Returns the learning rate of an epoch: config.lr, scaled linearly with the global batch, times the schedule."""
    # The order of the factors fixes the last bit, and with it the bits of the weights.
    return config.lr * config.batch_size * processes / REFERENCE_BATCH * config.lr_factor(epoch)
