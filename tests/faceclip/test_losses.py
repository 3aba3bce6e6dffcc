"""Row-block losses against dense float64 references, their memory, and two processes."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from faceclip import losses
from faceclip.losses import gather_targets, infonce_loss, sigmoid_contrastive_loss


def case(n=70, m=90, d=24, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    unit = [F.normalize(torch.randn(k, d, generator=g, dtype=torch.float64), dim=1) for k in (n, m)]
    labels = [torch.randint(0, 30, (k,), generator=g) for k in (n, m)]
    groups = [label % 10 for label in labels]
    return [u.to(dtype).requires_grad_() for u in unit], labels, groups


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
    log_p = logits.log_softmax(1)
    rows = [-(log_p[i][positive[i]]).mean() for i in range(len(q)) if positive[i].any()]
    return torch.stack(rows).sum() / len(q)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_sigmoid_equals_dense(monkeypatch, grouped, block):
    monkeypatch.setattr(losses, "BLOCK_ENTRIES", {"cpu": block * 90 // 64})
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
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_infonce_equals_dense(monkeypatch, grouped):
    monkeypatch.setattr(losses, "BLOCK_ENTRIES", {"cpu": 900})
    (q, t), labels, groups = case(seed=1)
    scale = torch.tensor(2.0, requires_grad=True)
    extra = groups if grouped else ()
    loss = infonce_loss(q, t, scale, *labels, *extra)
    found = torch.autograd.grad(loss, (q, t, scale))
    (q64, t64), _, _ = case(seed=1, dtype=torch.float64)
    scale64 = scale.detach().double().requires_grad_()
    reference = dense_infonce(q64, t64, scale64, *labels, *extra)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    for a, b in zip(found, torch.autograd.grad(reference, (q64, t64, scale64)), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)


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


def test_memory_for_backward_is_linear():
    n, d = 4096, 256
    q = F.normalize(torch.randn(n, d), dim=1).requires_grad_()
    t = F.normalize(torch.randn(n, d), dim=1)
    labels = torch.arange(n)
    seen: dict[int, int] = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scale = torch.tensor(2.0, requires_grad=True)
        loss = sigmoid_contrastive_loss(q, t, scale, torch.tensor(-10.0), labels, labels)
    held = [v for v in vars(loss.grad_fn).values() if isinstance(v, torch.Tensor)]
    total = sum(seen.values()) + sum(v.untyped_storage().nbytes() for v in held)
    assert total <= 8 * 2**20
    assert sum(seen.values()) >= n * d * 4  # the count is not blind: the gradient of the queries is there


@pytest.mark.parametrize(
    ("change", "message"),
    [({"query_labels": torch.zeros(3)}, "query_labels"), ({"query_groups": torch.zeros(70)}, "together")],
)
def test_sizes_that_do_not_fit(change, message):
    (q, t), labels, _ = case()
    arguments = {"query_labels": labels[0], "target_labels": labels[1]} | change
    with pytest.raises(ValueError, match=message):
        sigmoid_contrastive_loss(q, t, torch.tensor(1.0), torch.tensor(0.0), **arguments)


def _rank(rank: int, port: int, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    (q, t), labels, _ = case(64, 64)
    half = slice(32 * rank, 32 * rank + 32)
    scale = torch.tensor(2.0, requires_grad=True)
    queries = q.detach()[half].clone().requires_grad_()
    loss = sigmoid_contrastive_loss(queries, gather_targets(t[half]), scale, torch.tensor(-3.0), labels[0][half],
                                    gather_targets(labels[1][half]))  # fmt: skip
    loss.backward()
    gradient = scale.grad.clone()
    dist.all_reduce(gradient)
    results[rank] = (loss.item(), queries.grad, gradient.item() / 2)
    dist.destroy_process_group()


def test_two_ranks_equal_one():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_rank, (port, results), nprocs=2)
        found = dict(results)
    (q, t), labels, _ = case(64, 64)
    scale = torch.tensor(2.0, requires_grad=True)
    whole = sigmoid_contrastive_loss(q, t.detach(), scale, torch.tensor(-3.0), *labels)
    whole.backward()
    assert (found[0][0] + found[1][0]) / 2 == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]) / 2, q.grad, atol=1e-7, rtol=1e-5)
    assert found[0][2] == pytest.approx(scale.grad.item(), rel=1e-5)
