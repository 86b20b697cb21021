"""Makes a config from the result of a search: python NAS/derive.py --name NAME [--config FILE] [--epoch N] […]

Reads the genotype of the last epoch (or of --epoch) from {config.output}/genotypes.jsonl, or the genotype of
--genotype as text, JSON or a file. --skip-limit derives the normal cell anew, with fewer skip connections. Writes
config/config_NAME.py, with which ./train.sh trains the network.
"""

import argparse
import json
import re
import sys
from pathlib import Path

if not __package__:  # run as a script: this folder is first on the path; use the project's instead
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from backbones.augment_cnn import PocketNet
from backbones.genotypes import Genotype, parse_genotype, to_text
from config import CommandParser, add_config_arguments, load_config, warn_unused_fields
from config.load import CONFIG_FOLDER
from NAS.search import DEFAULT_CONFIG
from NAS.supernet import derive_nodes
from NAS.visualize import draw_cells
from utils.errors import UserError, run_cli
from utils.filesystem import (
    exists_as_non_folder,
    open_regular_file,
    path_exists,
    save_figure,
    write_files,
    write_text_atomic,
)
from utils.flops import Cost, count_operations


def main() -> None:
    """Runs the command."""
    parser = CommandParser("Make a config from the result of a search.")
    add_config_arguments(parser)
    parser.add_argument("--name", required=True, help="name of the config: config/config_NAME.py")
    parser.add_argument("--epoch", type=int, help="epoch of the genotype (default: the last)")
    parser.add_argument("--skip-limit", type=int, help="maximum of skip_connect in the normal cell (default: as found)")
    parser.add_argument("--genotype", help="a genotype instead of that of a search: text, JSON, or a file with either")
    parser.add_argument("--channel", type=int, default=16, help="channels of the first stage (%(default)s)")
    parser.add_argument("--n-layers", type=int, default=18, help="number of cells (%(default)s)")
    parser.add_argument("--embedding-size", type=int, default=128, help="size of the embedding (%(default)s)")
    parser.add_argument("--rec", help="folder of the training data (default: as in config/base.py)")
    parser.add_argument("--force", action="store_true", help="overwrite a config of that name")
    args = parser.parse()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", args.name):
        raise UserError(f"--name {args.name!r}: should be letters, digits and _")
    path = CONFIG_FOLDER / f"config_{args.name}.py"
    if path.exists() and not args.force:
        raise UserError(f"--name {args.name}: {path} already exists", fix="choose another name, or pass --force")
    if args.skip_limit is not None and (args.skip_limit < 0 or args.genotype):
        raise UserError("--skip-limit: should be at least 0, and without --genotype")
    if args.channel < 1 or args.n_layers < 4 or args.embedding_size < 1:
        raise UserError("--channel, --n-layers, --embedding-size: should be at least 1, 4 and 1")
    config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
    warn_unused_fields(config, "derive --genotype" if args.genotype else "derive")
    if args.genotype:
        genotype, origin = parse_genotype(_read_genotype_text(args.genotype)), "Given with --genotype"
    else:
        genotype, origin = read_genotype(Path(config.output), args.epoch, args.skip_limit)
    cost = count_operations(PocketNet(args.channel, args.n_layers, genotype, emb=args.embedding_size))
    text, cells = config_text(args, genotype, origin, cost), draw_cells(genotype, args.name)
    picture = path.with_suffix(".png")
    writers = {
        path: lambda path: write_text_atomic(path, text),
        picture: lambda path: save_figure(path, cells, dpi=80),
    }
    write_files(writers, "free disk space or allow writing, and try again")
    print(f"{path}: {_describe(cost)}\n{picture}: its cells")
    print(f"Train it: ./train.sh --config {path.relative_to(CONFIG_FOLDER.parent)}")


def read_genotype(folder: Path, epoch: int | None, skip_limit: int | None = None) -> tuple[Genotype, str]:
    """Reads the genotype of an epoch (default: the last) from the output folder of a search.

    Returns it with a sentence about its origin. Raises UserError if there is none. skip_limit: derives the normal cell
    anew from the alphas of the epoch, see `derive_nodes`.
    """
    path = folder / "genotypes.jsonl"
    if not path_exists(path.exists):
        raise UserError(f"config output: no genotypes.jsonl in {str(folder)!r}", fix="search first: NAS/search.sh")
    try:
        with open_regular_file(path) as file:
            lines = [json.loads(line) for line in file.read().decode().splitlines() if line.strip()]
        by_epoch = {int(line["epoch"]): line for line in lines}
        line = by_epoch[max(by_epoch) if epoch is None else epoch]
        genotype, origin = parse_genotype(line["genotype"]), f"Found by a search, epoch {line['epoch']} of {folder}"
        if skip_limit is None:
            return genotype, origin
        if "alphas" not in line:
            raise UserError(f"--skip-limit: {path} has no alphas", fix="search again, with skip_limit in the config")
        alphas = [torch.tensor(node) for node in line["alphas"]["normal"]]
        normal = derive_nodes(alphas, skip_limit, line["operations"])
        return genotype._replace(normal=normal), f"{origin}, with at most {skip_limit} skip_connect"
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"--epoch: {error.args[0]} is not in {path}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!s:.80})") from None


def _read_genotype_text(argument: str) -> str:
    """Returns the content of a file, or the argument itself if no such file exists. Raises UserError."""
    path = Path(argument)
    if not exists_as_non_folder(path):
        return argument
    try:
        with open_regular_file(path) as file:
            return file.read().decode()
    except (OSError, ValueError) as error:
        raise UserError(f"--genotype {argument}: cannot be read as text ({error!s:.80})") from None


def _describe(cost: Cost) -> str:
    return (
        f"{cost.parameters:,} parameters, {cost.published_flops / 1e6:,.2f} MFLOPs as the paper counts them, "
        f"{cost.multiply_adds / 1e6:,.1f} M multiply-adds"
    )


def config_text(args: argparse.Namespace, genotype: Genotype, origin: str, cost: Cost) -> str:
    """Returns the text of the config file.

    args: name, rec, channel, n_layers and embedding_size of the command line. origin: for the docstring.
    """
    rec = f"config.rec = {json.dumps(args.rec, ensure_ascii=False)}\n" if args.rec else ""
    cells = [
        f'        "{part}, "' for part in re.split(r", (?=normal_concat|reduce=|reduce_concat)", to_text(genotype))
    ]
    cells[-1] = cells[-1].replace(', "', '"')
    joined = "\n".join(cells)
    escaped = json.dumps(origin, ensure_ascii=False)[1:-1]  # the name of a folder may contain quotes and backslashes
    return f'''"""{args.name}: {_describe(cost)}.

{escaped}.
"""

from easydict import EasyDict

config = EasyDict()
config.output = "output/{args.name}"
{rec}config.embedding_size = {args.embedding_size}
config.channel = {args.channel}
config.n_layers = {args.n_layers}
config.genotype = "{args.name}"
config.genotypes = {{
    "{args.name}": (
{joined}
    )
}}
'''


if __name__ == "__main__":
    run_cli(main)
