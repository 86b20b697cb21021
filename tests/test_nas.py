"""The search: supernet, architect, split and cost, against golden vectors and formulas written out."""

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backbones.genotypes import parse, to_json, to_text
from NAS.architect import Architect, running_statistics_kept
from NAS.cost import expected, operation_costs
from NAS.data import RESIZED, resize_and_crop, split
from NAS.supernet import NONE, PRIMITIVES, SKIP, Supernet, derive
from tests.conftest import GOLDEN, golden_images, golden_state
from utils.distributed import World
from utils.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "nas.npz")


@pytest.fixture(scope="module")
def shapes():
    return json.loads((GOLDEN / "nas_shapes.json").read_text())


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As the golden vectors were made: sums in another order move a gradient by 5e-4, which is how far float64 lies."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stepped(golden, shapes, two_threads) -> tuple[Supernet, torch.optim.SGD, Batch, Batch]:
    """The golden supernet after its one step of the weights, and both batches."""
    net = Supernet(4, 4, 4, 3, 10)
    net.load_state_dict(golden_state(shapes))
    optimizer = torch.optim.SGD(net.weights(), 0.1, 0.9, weight_decay=3e-4)
    train = golden_images(12, 4), torch.from_numpy(golden["train_y"])
    loss = F.cross_entropy(net(train[0]), train[1])
    assert loss.item() == pytest.approx(float(golden["loss0"]), abs=1e-5)
    loss.backward()
    optimizer.step()
    net.zero_grad()
    return net, optimizer, train, (golden_images(13, 4), torch.from_numpy(golden["val_y"]))


def flat(gradients) -> np.ndarray:
    return torch.cat([gradient.flatten() for gradient in gradients]).numpy()


def architect(net, **options) -> Architect:
    return Architect(net, 0.9, 3e-4, CPU, **options)


def test_keys_and_shapes(shapes):
    state = Supernet(4, 4, 4, 3, 10).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == shapes
    assert list(state) == list(shapes)


def test_logits_first_order_gradient_and_genotype(golden, stepped):
    net, optimizer, train, val = stepped
    np.testing.assert_allclose(net(val[0]).detach().numpy(), golden["val_logits"], atol=1e-4)
    gradients, loss = architect(net, second_order=False).gradient(train, val, 0.1, optimizer)
    np.testing.assert_allclose(flat(gradients), golden["alpha_grad_first"], atol=1e-4)
    assert float(loss) == pytest.approx(F.cross_entropy(net(val[0]), val[1]).item(), abs=1e-6)
    assert net.genotype() == parse(str(golden["genotype"]))


def test_second_order_gradient_and_everything_back_in_place(golden, stepped):
    net, optimizer, train, val = stepped
    before = {key: value.clone() for key, value in net.state_dict().items()}
    gradients, _ = architect(net).gradient(train, val, 0.1, optimizer)
    expected_gradient = golden["alpha_grad_second"]
    error = np.linalg.norm(flat(gradients) - expected_gradient) / np.linalg.norm(expected_gradient)
    assert error < 0.02
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_second_order_is_the_derivative_of_the_unrolled_loss(monkeypatch):
    """Equation 6 differentiated by autograd itself, in float64, on a smaller supernet.

    With a step of the finite difference so small that it ends within a piece of the piecewise linear network.
    """
    monkeypatch.setattr("NAS.architect.EPSILON", 1e-8)
    torch.manual_seed(0)
    net = Supernet(2, 4, 1, 2, 3, emb=8).double()
    optimizer = torch.optim.SGD(net.weights(), 0.05, 0.9, weight_decay=3e-4)
    train, val = ((golden_images(seed, 6).double(), torch.tensor([0, 1, 2, 0, 1, 2]).roll(seed)) for seed in (1, 2))
    for weight in net.weights():
        optimizer.state[weight]["momentum_buffer"] = 0.01 * torch.randn_like(weight)
    gradients, _ = architect(net).gradient(train, val, 0.05, optimizer)

    for alpha in net.alphas():
        alpha.requires_grad_(True)
    names = [name for name, _ in net.named_parameters() if name.startswith("net.")]
    with running_statistics_kept(net):
        loss = F.cross_entropy(net(train[0]), train[1])
        of_weights = torch.autograd.grad(loss, net.weights(), create_graph=True)
        unrolled = {
            name: w - 0.05 * (0.9 * optimizer.state[w]["momentum_buffer"] + g + 3e-4 * w)
            for name, w, g in zip(names, net.weights(), of_weights, strict=True)
        }
        val_loss = F.cross_entropy(torch.func.functional_call(net, unrolled, (val[0],)), val[1])
        by_autograd = torch.autograd.grad(val_loss, net.alphas())
    ours, theirs = flat(gradients), flat(by_autograd)
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)
    first, _ = architect(net, second_order=False).gradient(train, val, 0.05, optimizer)
    assert np.linalg.norm(flat(first) - theirs) > 1e-2 * np.linalg.norm(theirs)  # the second order is more than that


@pytest.mark.parametrize("second_order", [False, True])
def test_published_gradient_adds_that_of_training(stepped, second_order):
    net, optimizer, train, val = stepped
    plain, _ = architect(net, second_order=second_order).gradient(train, val, 0.1, optimizer)
    published, _ = architect(net, second_order=second_order, alpha_gradient="published").gradient(
        train, val, 0.1, optimizer
    )
    of_training, _ = architect(net, second_order=False).gradient(train, train, 0.1, optimizer)
    np.testing.assert_allclose(flat(published) - flat(plain), flat(of_training), atol=2e-3)


def test_a_derived_network_runs_its_operations_alone(stepped):
    """As a supernet whose alphas are certain: the softmax of the kept edges is 1 at their operation."""
    net, *_ = stepped
    genotype = net.genotype()
    kinds = ((net.alpha_normal, genotype.normal), (net.alpha_reduce, genotype.reduce))
    with torch.no_grad(), running_statistics_kept(net):
        for alphas, nodes in kinds:
            for alpha, edges in zip(alphas, nodes, strict=True):
                alpha.fill_(-1e4)
                alpha[:, NONE] = 0
                for operation, state in edges:
                    alpha[state, NONE] = -1e4
                    alpha[state, PRIMITIVES.index(operation)] = 0
        images = golden_images(5, 3)
        torch.testing.assert_close(net(images, genotype), net(images), rtol=1e-4, atol=1e-4)


def test_derive_leaves_out_none_and_limits_skips():
    rng = torch.Generator().manual_seed(1)
    alphas = [torch.rand(2 + node, len(PRIMITIVES), generator=rng) for node in range(4)]
    for alpha in alphas:
        alpha[:, NONE] = 9
        alpha[:, SKIP] += 2
    free = derive(alphas)
    assert all(operation == "skip_connect" for node in free for operation, _ in node)
    for limit in range(8):
        nodes = derive(alphas, skip_limit=limit)
        kept = [(n, state) for n, node in enumerate(nodes) for operation, state in node if operation == "skip_connect"]
        assert len(kept) <= limit and all(len(node) == len({state for _, state in node}) == 2 for node in nodes)
        assert "none" not in {operation for node in nodes for operation, _ in node}
    best = max(((float(alpha[state, SKIP]), n, state) for n, alpha in enumerate(alphas) for state in range(len(alpha))))
    (only,) = [
        (n, s) for n, node in enumerate(derive(alphas, 1)) for operation, s in node if operation == "skip_connect"
    ]
    assert only == best[1:]


def test_genotypes_in_text_and_json(golden):
    genotype = parse(str(golden["genotype"]))
    assert parse(to_text(genotype)) == parse(to_json(genotype)) == genotype and "\n" not in to_text(genotype)
    for text, message in (
        ("{", "no JSON"),
        ('{"normal": []}', "needs normal"),
        (to_json(genotype).replace("skip_connect", "jump"), "unknown operation 'jump'"),
        (to_json(genotype).replace('["dw_conv_3x3", 3]', '["dw_conv_3x3", 9]'), "reads state 9"),
    ):
        with pytest.raises(UserError, match=message):
            parse(text)


def test_split_takes_half_of_every_identity_and_every_image_once():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(1, 10, 40))
    rng.shuffle(labels)
    halves = split(labels, seed=3)
    assert sorted([*halves.train, *halves.val]) == list(range(len(labels)))
    counts = np.bincount(labels)
    in_train, in_val = (np.bincount(labels[half], minlength=40) for half in (halves.train, halves.val))
    several = counts > 1
    assert (np.abs(in_train - in_val)[several] <= 1).all() and (in_train[~several] == 1).all()
    assert abs(int(np.sum((in_train - in_val)[several]))) <= 1  # odd ones by turns
    again, other = split(labels, seed=3), split(labels, seed=4)
    assert np.array_equal(again.train, halves.train) and not np.array_equal(other.train, halves.train)
    with pytest.raises(UserError, match="no identity has two images"):
        split(np.arange(5), 0)


def test_crops_are_cut_from_the_enlarged_image():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 112, 112, 3), np.uint8))
    crops = resize_and_crop(images, torch.Generator().manual_seed(0))
    assert crops.shape == images.shape and crops.dtype == torch.uint8
    large = F.interpolate(images.permute(0, 3, 1, 2), (RESIZED, RESIZED), mode="bilinear", antialias=True)
    offsets = list(itertools.product(range(RESIZED - 111), repeat=2))
    found = [
        [(y, x) for y, x in offsets if torch.equal(large[i, :, y : y + 112, x : x + 112], crops[i].permute(2, 0, 1))]
        for i in range(len(crops))
    ]
    assert all(len(places) == 1 for places in found) and len({places[0] for places in found}) > 1


def test_costs_are_the_multiply_adds_of_the_operations():
    net = Supernet(4, 4, 2, 2, 3, emb=8)
    normal, reduce = operation_costs(net.net)
    # One normal cell, of 4 channels at 56 × 56: depthwise k² and pointwise 4 multiply-adds a value.
    values = 4 * 56 * 56 / 1e6
    row = [0, 0, 0, *(values * (k * k + 4) for k in (3, 5, 7, 1)), 0]
    for node in normal:
        torch.testing.assert_close(node, torch.tensor(row).expand(len(node), -1))
    # Reduction cells of 8, 16 and 32 channels; from inputs to half their resolution, from nodes at that.
    halved = [(8, 28), (16, 14), (32, 7)]
    conv3 = sum(c * size * size * (9 + c) for c, size in halved) / 1e6
    skip = sum(c * size * size * (2 + c) for c, size in halved) / 1e6  # two depthwise paths, two of half the channels
    for node, edges in enumerate(reduce):
        assert edges[:, PRIMITIVES.index("dw_conv_3x3")].tolist() == pytest.approx([conv3] * (2 + node), rel=1e-5)
        assert edges[:, SKIP].tolist() == pytest.approx([skip] * 2 + [0] * node, rel=1e-5)
    weights = [torch.full_like(edges, 0.5) for edges in normal]
    assert float(expected(weights, normal)) == pytest.approx(0.5 * float(sum(edges.sum() for edges in normal)))
