"""check_labels: labels out of range that a kernel could not raise for."""

from __future__ import annotations

import threading

import pytest
import torch
from cross_entropy_cases import draw_target
from running import Backend, differentiate, random

from pspnet_fast import check_labels, upsample_cross_entropy

OPERATOR = "upsample_cross_entropy"


def score(backend: Backend, label: int) -> None:
    target = torch.full((1, 4, 4), label, device=backend.device)
    upsample_cross_entropy(torch.zeros(1, 3, 2, 2, device=backend.device), target)


def in_thread(backend: Backend, label: int) -> list[BaseException]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            score(backend, label)
        except IndexError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


@pytest.fixture
def _later(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend.name != "cuda" and backend.device.type != "cuda":
        pytest.skip("on the CPU the call itself raises")
    monkeypatch.delenv("PSPNET_FAST_CHECK_LABELS", raising=False)


@pytest.mark.usefixtures("_later")
def test_tells_what_the_last_call_met(backend: Backend) -> None:
    score(backend, 7)
    with pytest.raises(IndexError, match=r"Target 7 is out of bounds"):
        check_labels(backend.device)
    check_labels(backend.device)
    score(backend, 1)


@pytest.mark.usefixtures("_later")
def test_tells_what_another_thread_met(backend: Backend) -> None:
    """To this thread's next call it is nothing."""
    score(backend, 1)  # a thread without a word of its own would take over that of the other, and what it holds
    assert in_thread(backend, 9) == []
    score(backend, 1)
    with pytest.raises(IndexError, match=r"Target 9 is out of bounds"):
        check_labels(backend.device)
    assert in_thread(backend, 1) == []


@pytest.mark.usefixtures("_later")
def test_of_all_gpus(backend: Backend) -> None:
    check_labels()
    if backend.device.type == "cuda":
        score(backend, 5)
        with pytest.raises(IndexError, match=r"Target 5 is out of bounds"):
            check_labels()


@pytest.mark.parametrize("label", [3, 2**32, -2, -(2**63)])
def test_triton_notes_a_label_and_leaves_its_pixel_out(
    backend: Backend, label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name != "triton":
        pytest.skip("Triton's kernels' own")
    from pspnet_fast.triton import cross_entropy, label_flag

    monkeypatch.delenv("PSPNET_FAST_CHECK_LABELS", raising=False)
    if backend.device.type == "cpu":  # the kernels do on the CPU what they do on a GPU
        noted = torch.full((1,), label_flag.NOTHING)
        monkeypatch.setattr(cross_entropy, "watch_labels", lambda *_: noted)
    else:
        noted = label_flag.watch_labels(torch.zeros(1, 1, 1, dtype=torch.int64, device=backend.device), 1, 255)
    logits, clean = random(1, 3, 2, 3, device=backend.device), draw_target((1, 7, 9), 3, device=backend.device)
    clean[0, 2, 1] = 255
    bad = clean.clone()
    bad[0, 2, 1] = label
    # The clean one first: on a GPU the next call after that of a bad label raises.
    expected, actual = (differentiate(lambda z, t=t: upsample_cross_entropy(z, t), [logits]) for t in (clean, bad))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    with pytest.raises(IndexError, match=rf"Target {label} is out of bounds, in an earlier call"):
        label_flag.raise_noted(noted, "in an earlier call")
    label_flag.raise_noted(noted, "which has been told")


def test_a_thread_keeps_its_word_of_triton() -> None:
    """And its next call looks there, whatever the word holds: on no device in particular."""
    label_flag = pytest.importorskip("pspnet_fast.triton.label_flag", exc_type=ImportError)
    target = torch.zeros(1, 1, 1, dtype=torch.int64, device="meta")
    word = label_flag.watch_labels(target, 3, 255)
    assert label_flag.watch_labels(target, 3, 255) is word
    word.fill_(7)
    with pytest.raises(IndexError, match="Target 7 is out of bounds, in the target of an earlier call"):
        label_flag.watch_labels(target, 3, 255)
    assert label_flag.watch_labels(target, 3, 255) is word


def test_words_of_triton_belong_to_threads_and_are_checked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On no device in particular; a thread that starts takes over the word of one that has ended."""
    label_flag = pytest.importorskip("pspnet_fast.triton.label_flag", exc_type=ImportError)
    device = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    words = [label_flag._own.add(device)]
    for _ in range(2):
        thread = threading.Thread(target=lambda: words.append(label_flag._own.add(device)))
        thread.start()
        thread.join()
    assert words[0].data_ptr() != words[1].data_ptr()
    assert words[1].data_ptr() == words[2].data_ptr()
    words[1].fill_(6)
    label_flag.raise_noted(words[0], "met by this thread")
    with pytest.raises(IndexError, match="Target 6 is out of bounds"):
        label_flag.check_labels(torch.empty(0, device=device))
    label_flag.check_labels(torch.empty(0, device=device))
