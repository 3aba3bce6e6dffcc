"""Row-block losses against dense float64 references, their memory, and two processes."""

import os
import socket
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from faceclip import losses
from faceclip.cpu import matmul as cpu_matmul
from faceclip.errors import ConfigError
from faceclip.losses import gather_targets, infonce_loss, sigmoid_contrastive_loss
from faceclip.training.collectives import gather_rows


def case(n=70, m=90, d=24, seed=0, dtype=torch.float32, people=30):
    """Queries and targets of unit length up to float32's rounding: the same numbers in either type."""
    g = torch.Generator().manual_seed(seed)
    unit = [F.normalize(torch.randn(k, d, generator=g, dtype=torch.float64), dim=1).float() for k in (n, m)]
    labels = [torch.randint(0, people, (k,), generator=g) for k in (n, m)]
    groups = [label % 10 for label in labels]
    return [u.to(dtype).requires_grad_() for u in unit], labels, groups


def assert_gradients(found, expected):
    """Within 1e-6 of the reference: entries of queries and targets absolutely, and all by relative norm, so that the
    small entries of a large batch and the scalars are not lost in an absolute tolerance."""
    for a, b in zip(found, expected, strict=True):
        if b.ndim:
            torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=0)
        assert torch.linalg.vector_norm(a - b) <= 1e-6 * torch.linalg.vector_norm(b)


def dense_sigmoid(q, t, scale, bias, ql, tl, qg=None, tg=None):
    positive = ql[:, None] == tl
    logits = scale.exp() * q @ t.T + bias
    loss = F.softplus(-torch.where(positive, logits, -logits))
    if qg is not None:
        loss = loss.masked_fill((qg[:, None] == tg) & ~positive, 0)
    return loss.sum() / len(q)


def dense_infonce(q, t, scale, ql, tl, qg=None, tg=None):
    positive = ql[:, None] == tl
    logits = scale.exp() * q @ t.T
    if qg is not None:
        logits = logits.masked_fill((qg[:, None] == tg) & ~positive, -torch.inf)
    log_p = torch.where(positive, logits.log_softmax(1), 0)
    return -(log_p.sum(1) / positive.sum(1).clamp_min(1)).sum() / len(q)


@pytest.fixture(params=["onednn", "plain"])
def product(request, monkeypatch) -> str:
    """Both ways to a matrix product; the first is not there on every processor."""
    if request.param == "plain":
        monkeypatch.setattr(cpu_matmul, "has_onednn", lambda: False)
    elif not cpu_matmul.has_onednn():
        pytest.skip("no AVX-512 or no oneDNN")
    return request.param


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_sigmoid_equals_dense(monkeypatch, product, grouped, block):
    monkeypatch.setattr(losses, "BLOCK_ENTRIES", {"cpu": block * 90 // 64})
    monkeypatch.setattr(losses, "MIN_ROWS", 1)
    (q, t), labels, groups = case()
    scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    extra = groups if grouped else ()
    loss = 1.7 * sigmoid_contrastive_loss(q, t, scale, bias, *labels, *extra)
    found = torch.autograd.grad(loss, (q, t, scale, bias))
    (q64, t64), _, _ = case(dtype=torch.float64)
    scale64, bias64 = scale.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    reference = 1.7 * dense_sigmoid(q64, t64, scale64, bias64, *labels, *extra)
    expected = torch.autograd.grad(reference, (q64, t64, scale64, bias64))
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert_gradients(found, expected)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("block", [900, 1 << 20])
def test_infonce_equals_dense(monkeypatch, product, grouped, block):
    monkeypatch.setattr(losses, "BLOCK_ENTRIES", {"cpu": block})
    monkeypatch.setattr(losses, "MIN_ROWS", 1)
    (q, t), labels, groups = case(seed=1)
    scale = torch.tensor(2.0, requires_grad=True)
    extra = groups if grouped else ()
    loss = infonce_loss(q, t, scale, *labels, *extra)
    found = torch.autograd.grad(loss, (q, t, scale))
    (q64, t64), _, _ = case(seed=1, dtype=torch.float64)
    scale64 = scale.detach().double().requires_grad_()
    reference = dense_infonce(q64, t64, scale64, *labels, *extra)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    assert_gradients(found, torch.autograd.grad(reference, (q64, t64, scale64)))


@pytest.mark.parametrize(("loss", "dense"), [(sigmoid_contrastive_loss, dense_sigmoid), (infonce_loss, dense_infonce)])
def test_a_large_batch_equals_dense(product, loss, dense):
    """Sizes and scalars of training: several blocks of the default size, four pictures a person."""
    size = {"n": 1536, "m": 1536, "d": 256, "seed": 4, "people": 384}
    start = (1 / 0.07, -10.0) if loss is sigmoid_contrastive_loss else (1 / 0.07,)
    values = [torch.tensor(start[0]).log(), *map(torch.tensor, start[1:])]
    (q, t), labels, _ = case(**size)
    scalars = [value.clone().requires_grad_() for value in values]
    value = loss(q, t, *scalars, *labels)
    (q64, t64), _, _ = case(**size, dtype=torch.float64)
    scalars64 = [value.double().requires_grad_() for value in values]
    reference = dense(q64, t64, *scalars64, *labels)
    assert value.item() == pytest.approx(reference.item(), rel=1e-6)
    assert_gradients(
        torch.autograd.grad(value, (q, t, *scalars)), torch.autograd.grad(reference, (q64, t64, *scalars64))
    )


@pytest.mark.parametrize(
    ("loss", "reference"), [(sigmoid_contrastive_loss, dense_sigmoid), (infonce_loss, dense_infonce)]
)
def test_weights_of_queries_and_labels_in_columns_equal_dense(monkeypatch, loss, reference):
    monkeypatch.setattr(losses, "BLOCK_ENTRIES", {"cpu": 16 * 90})
    monkeypatch.setattr(losses, "MIN_ROWS", 1)
    (q, t), labels, groups = case()
    (q64, t64), _, _ = case(dtype=torch.float64)
    weights = torch.linspace(-1, 2, 70).clamp_min(0)
    columns = [
        torch.stack([label, group], dim=1) for label, group in zip(labels, (groups[0], groups[1] + 3), strict=True)
    ]
    starts = (2.0, -3.0) if loss is sigmoid_contrastive_loss else (2.0,)
    scalars = [torch.tensor(value, requires_grad=True) for value in starts]
    doubles = [value.detach().double().requires_grad_() for value in scalars]
    value = loss(q, t, *scalars, *columns, query_weights=weights)
    found = torch.autograd.grad(value, (q, t, *scalars))
    # Each query by itself is a batch of one, whose labels become one column by hand.
    equal = (columns[0][:, None] == columns[1]).any(dim=2)
    rows = [
        reference(q64[i : i + 1], t64, *doubles, torch.ones(1), equal[i].float()) * weights[i].double()
        for i in range(70)
    ]
    expected_value = torch.stack(rows).sum() / 70
    expected = torch.autograd.grad(expected_value, (q64, t64, *doubles))
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-6)
    assert_gradients(found, expected)


def test_by_hand():
    # One positive pair at cosine 1, logits 0: log 2; one negative pair at logit 0: log 2.
    q, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    zero = torch.tensor(0.0)
    loss = sigmoid_contrastive_loss(q, t, zero, torch.tensor(-1.0), torch.tensor([0]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item() + F.softplus(torch.tensor(-1.0)).item())


def test_no_queries_no_loss():
    (_, t), labels, _ = case()
    empty = torch.zeros(0, 24, requires_grad=True)
    loss = sigmoid_contrastive_loss(empty, t, torch.tensor(1.0), torch.tensor(0.0), labels[0][:0], labels[1])
    assert loss.item() == 0


def test_infonce_by_hand_and_with_nothing_to_choose_from():
    q, t = torch.tensor([[1.0, 0.0]]).requires_grad_(), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = infonce_loss(q, t, torch.tensor(0.0), torch.tensor([0]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(torch.log(1 + torch.exp(torch.tensor(-1.0))).item())
    one = torch.tensor([5])  # no positive, and every target is left out
    loss = infonce_loss(q, t, torch.tensor(0.0), torch.tensor([9]), torch.tensor([0, 1]), one, torch.tensor([5, 5]))
    loss.backward()
    assert loss.item() == 0 and not q.grad.any()


def test_precision_at_a_large_scale():
    """Logits beyond ± 100, where a loss formed from exponentials alone would overflow or vanish."""
    (q, t), labels, _ = case(seed=3)
    (q64, t64), _, _ = case(seed=3, dtype=torch.float64)
    scale, bias = torch.tensor(200.0).log(), torch.tensor(-10.0)
    assert (200 * q @ t.T).abs().max() > 100
    for found, reference in (
        (sigmoid_contrastive_loss(q, t, scale, bias, *labels), dense_sigmoid(q64, t64, scale.double(), bias, *labels)),
        (infonce_loss(q, t, scale, *labels), dense_infonce(q64, t64, scale.double(), *labels)),
    ):
        assert found.item() == pytest.approx(reference.item(), rel=1e-6)


def both_losses(q, t, labels):
    scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    yield sigmoid_contrastive_loss(q, t, scale, bias, labels, labels)
    yield infonce_loss(q, t, scale, labels, labels)


@pytest.mark.parametrize("train_targets", [False, True])
def test_memory_for_backward_is_linear(train_targets):
    """At most 8 MiB in storages that autograd saves: one gradient of N × D numbers for each trainable side."""
    n, d = 4096, 256
    q = F.normalize(torch.randn(n, d), dim=1).requires_grad_()
    t = F.normalize(torch.randn(n, d), dim=1).requires_grad_(train_targets)
    seen: dict[int, int] = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for loss in both_losses(q, t, torch.arange(n)):
            kept = [value if isinstance(value, tuple) else (value,) for value in vars(loss.grad_fn).values()]
            held = [value for values in kept for value in values if isinstance(value, torch.Tensor)]
            assert sum(seen.values()) == n * d * 4 * (1 + train_targets) <= 8 * 2**20
            assert 0 < sum(v.untyped_storage().nbytes() for v in held) <= 64  # gradients of scale and bias
            seen.clear()
            loss.backward()
            assert q.grad.any() and (t.grad is not None) == train_targets


def test_dtypes_come_back_and_autocast_changes_nothing():
    (q, t), labels, _ = case(90, 90)
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in (q, t)]
    exact = [x.detach().float().requires_grad_() for x in half]
    with torch.autocast("cpu", torch.bfloat16):
        found = [(loss.item(), torch.autograd.grad(loss, half)) for loss in both_losses(*half, labels[0])]
    for (value, gradients), loss in zip(found, both_losses(*exact, labels[0]), strict=True):
        assert value == loss.item()
        for gradient, expected in zip(gradients, torch.autograd.grad(loss, exact), strict=True):
            assert gradient.dtype == torch.bfloat16
            assert torch.equal(gradient, expected.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_labels": torch.zeros(3)}, r"^query_labels .*\(70,\), .*\(3,\)"),
        ({"target_labels": None}, r"^target_labels .*\(90,\)"),
        ({"query_labels": torch.full((70,), torch.nan)}, r"^query_labels .*torch\.float32"),
        ({"query_groups": torch.zeros(70, dtype=torch.int64)}, "^query_groups and target_groups "),
        ({"targets": torch.zeros(90, 25)}, r"^queries .*targets .*\(70, 24\) .*\(90, 25\)"),
        ({"query_labels": list(range(70))}, "^query_labels .*list$"),
        ({"query_labels": torch.zeros(70, 2, dtype=torch.int64)}, r"^target_labels .*\(90, 2\)"),
        ({"query_labels": torch.zeros(70, 0, dtype=torch.int64)}, r"^query_labels .*\(70, 0\)"),
        ({"query_weights": torch.ones(69)}, r"^query_weights .*\(70,\) .*\(69,\)"),
        ({"query_weights": torch.ones(70, dtype=torch.int64)}, r"^query_weights .*torch\.int64"),
        ({"log_scale": 2.6}, "^log_scale .*float$"),
        ({"log_scale": torch.zeros(2)}, r"^log_scale .*\(2,\)"),
    ],
)
def test_bad_input(change, message):
    (q, t), labels, _ = case()
    one = torch.tensor(1.0)
    arguments = {"queries": q, "targets": t, "query_labels": labels[0], "target_labels": labels[1], "log_scale": one}
    for loss, scalars in ((sigmoid_contrastive_loss, {"bias": one}), (infonce_loss, {})):
        with pytest.raises(ConfigError, match=message):
            loss(**arguments | scalars | change)


def test_scalars_of_one_row():
    """Hugging Face's SigLIP keeps scale and bias so."""
    (q, t), labels, _ = case()
    found = []
    for shape in ((), (1,)):
        scale, bias = (torch.full(shape, value, requires_grad=True) for value in (2.0, -3.0))
        loss = sigmoid_contrastive_loss(q, t, scale, bias, *labels)
        assert loss.shape == ()
        found.append([loss, *(gradient.reshape(()) for gradient in torch.autograd.grad(loss, (scale, bias)))])
        assert bias.shape == scale.shape == shape
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Loss, reference, and where the trained scalars start: log scale, then bias.
LOSSES = ((sigmoid_contrastive_loss, dense_sigmoid, (2.0, -3.0)), (infonce_loss, dense_infonce, (2.0,)))


def _rank(rank: int, port: int, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    (q, t), labels, _ = case(64, 64)
    half = slice(32 * rank, 32 * rank + 32)
    frozen, names = gather_targets(t[half]), gather_targets(labels[1][half])
    assert not frozen.requires_grad
    found = []
    for loss, _, start in LOSSES:
        queries, own = (x.detach()[half].clone().requires_grad_() for x in (q, t))
        scalars = [torch.tensor(value, requires_grad=True) for value in start]
        trained = gather_rows(own)
        assert torch.equal(trained, frozen)
        value = loss(queries, trained, *scalars, labels[0][half], names)
        value.backward()
        for scalar in scalars:
            dist.all_reduce(scalar.grad)
        again = q.detach()[half].clone().requires_grad_()
        loss(again, frozen, *(scalar.detach() for scalar in scalars), labels[0][half], names).backward()
        assert torch.equal(again.grad, queries.grad)  # whether the targets are trained does not matter to the queries
        found.append((value.item(), queries.grad, own.grad, torch.stack([scalar.grad for scalar in scalars])))
    results[rank] = found
    dist.destroy_process_group()


def test_two_ranks_equal_one():
    """Value and every gradient, the scalars' all-reduced; a mean over ranks, as DistributedDataParallel takes it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        context = torch.multiprocessing.spawn(_rank, (port, results), nprocs=2, join=False)
        deadline = time.monotonic() + 120
        while not context.join(timeout=max(0.1, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                pytest.fail("the ranks did not finish in 120 s")
        found = dict(results)
    (q, t), labels, _ = case(64, 64, dtype=torch.float64)
    for number, (_, reference, start) in enumerate(LOSSES):
        scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in start]
        whole = reference(q, t, *scalars, *labels)
        first, second = found[0][number], found[1][number]
        assert (first[0] + second[0]) / 2 == pytest.approx(whole.item(), rel=1e-6)
        assert torch.equal(first[3], second[3])  # after the all-reduce
        rows = [torch.cat([first[i], second[i]]) / 2 for i in (1, 2)]
        assert_gradients((*rows, *first[3] / 2), torch.autograd.grad(whole, (q, t, *scalars)))


@pytest.mark.parametrize("loss", [sigmoid_contrastive_loss, infonce_loss])
def test_no_targets_are_refused(loss):
    scalars = [torch.zeros(())] * (2 if loss is sigmoid_contrastive_loss else 1)
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"^targets .*\(0, 8\)"):
        loss(torch.ones(3, 8), torch.ones(0, 8), *scalars, labels, labels[:0])


@pytest.mark.parametrize("loss", [sigmoid_contrastive_loss, infonce_loss])
@pytest.mark.parametrize(
    ("queries", "targets"), [((3, 8, 1), (2, 8)), ((3, 8), (2, 8, 1)), ((8,), (2, 8)), ((3, 7), (2, 8))]
)
def test_rows_of_other_forms_are_refused(loss, queries, targets):
    scalars = [torch.zeros(())] * (2 if loss is sigmoid_contrastive_loss else 1)
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"^queries \(N, D\) and targets \(M, D\) .*8"):
        loss(torch.ones(queries), torch.ones(targets), *scalars, labels, labels[:2])
