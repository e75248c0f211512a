import pytest
import torch

from losskernel.data.arithmetic import modular_table
from losskernel.models.transformer import ArithmeticTransformer
from losskernel.sampling.engines import BatchedEngine, SequentialEngine
from losskernel.sampling.inputs import Inputs
from losskernel.sampling.parameters import select_parameters
from losskernel.sampling.sample import cross_entropy


def network(depth=1, shared=True, **options):
    torch.manual_seed(0)
    return ArithmeticTransformer(
        7, 8, 2, 16, depth, shared_operands=shared, shared_outputs=shared, **options
    )


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_evaluation_of_distinct_tokens_alone_is_that_of_all_of_them(depth, shared):
    """In training mode every token is computed on its own; there is no dropout to differ by."""
    table = modular_table(7, shared, shared)
    model = network(depth, shared).double()
    assert table.inputs.numel() > 4 * model.embed_tokens.num_embeddings
    found = []
    for mode in (True, False):
        output = model.train(mode)(table.inputs)
        loss = torch.nn.functional.cross_entropy(output, table.targets)
        found.append((output, *torch.autograd.grad(loss, list(model.parameters()))))
    for every, distinct in zip(*found, strict=True):
        torch.testing.assert_close(distinct, every, rtol=1e-12, atol=1e-14)


def test_distinct_tokens_are_computed_once(monkeypatch):
    model, table = network().eval(), modular_table(7)
    shapes = []
    model.blocks[0].attention.key.register_forward_hook(
        lambda _, args, __: shapes.append(tuple(args[0].shape))
    )
    model(table.inputs)
    model(table.inputs[:5])  # fewer tokens than there are distinct ones
    assert shapes == [(4 * 10, 8), (5, 4, 8)]


def test_both_engines_evaluate_it_alike():
    model, table = network(), modular_table(7)
    names = select_parameters(model)
    engines = [kind(model, cross_entropy, names) for kind in (BatchedEngine, SequentialEngine)]
    weights = engines[0].center + 0.1 * torch.randn(3, engines[0].layout.size)
    data = Inputs((table.inputs, table.targets))
    batches = [(table.inputs[start:], table.targets[start:]) for start in (0, 1, 2)]
    batches = [(x[:60], y[:60]) for x, y in batches]
    for found, expected in zip(*(e.gradients(weights, batches) for e in engines), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    found, expected = (engine.losses(weights, data, 1000) for engine in engines)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
