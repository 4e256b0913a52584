# SPDX-License-Identifier: Apache-2.0
"""The model class of lm-evaluation-harness: its log-likelihoods against decoding token by token."""

import runpy
from pathlib import Path

import datasets
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from tiny import save_tiny_model
from transformers import AutoModelForCausalLM

from innerkv.lm_eval import InnerKVLM
from innerkv.transformers import InnerKVCache

ROOT = Path(__file__).parents[3]
ALICE = (ROOT / "tests" / "data" / "alice-opening.txt").read_text(encoding="utf-8")
CONTEXT = ALICE[:421]  # a token a character; most are quantized, and the continuation crosses a page
CONTINUATIONS = [ALICE[421:500], " but", " and burning with curiosity", "s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def requests(kind, arguments):
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def steps(lm, cache, tokens):
    """Log-probabilities after each token, one a forward call."""
    rows = [lm.model(torch.tensor([[token]]), cache=cache).logits[0, 0] for token in tokens]
    return torch.stack(rows).double().log_softmax(-1)


def decoded(lm, cache, rows, continuation):
    """The harness's answer for a continuation of the context in `cache`, whose last row is given."""
    rows = torch.cat([rows[-1:], steps(lm, cache.fork(), continuation)[:-1]])
    targets = torch.tensor(continuation)
    return float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(1) == targets).all())


@pytest.mark.parametrize(("preset", "batch_size"), [("base", 1), ("base", 3), ("small", 2)])
def test_log_likelihoods_are_those_of_decoding(folder, preset, batch_size):
    lm = InnerKVLM(str(folder), preset, batch_size=batch_size)
    arguments = [(CONTEXT, continuation) for continuation in CONTINUATIONS]
    short = (ALICE[:50], "then")  # the beginning of the other context
    answers = lm.loglikelihood(requests("loglikelihood", [*arguments, short]), disable_tqdm=True)
    cache = InnerKVCache(lm.model.config, preset)
    rows = steps(lm, cache, lm.tok_encode(CONTEXT))
    for (_, continuation), (total, greedy) in zip(arguments, answers):
        expected, expected_greedy = decoded(lm, cache, rows, lm.tok_encode(continuation))
        # Products of other shapes round otherwise, and a few codes with them. Chunks that do not end where pages
        # do are off by more than twice as much, the f16 cache by 2.
        assert total == pytest.approx(expected, abs=0.03)
        assert greedy == expected_greedy
    cache = InnerKVCache(lm.model.config, preset)
    rows = steps(lm, cache, lm.tok_encode(short[0]))
    assert answers[-1][0] == pytest.approx(decoded(lm, cache, rows, lm.tok_encode(short[1]))[0], abs=1e-3)


def test_what_contexts_share_changes_nothing(folder):
    lm = InnerKVLM(str(folder), "base")
    arguments = [(ALICE[:350] + end, " a") for end in ("Who?", "And then she said, in a low voice,", "")]
    together = lm.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True)
    for argument, (total, _) in zip(arguments, together):
        [(alone, _)] = lm.loglikelihood(requests("loglikelihood", [argument]), disable_tqdm=True)
        assert total == pytest.approx(alone, abs=0.01)


def test_presets_differ(folder):
    """By less than what another text would make, and not by nothing."""
    arguments = [(CONTEXT, CONTINUATIONS[0])]
    totals = {preset: InnerKVLM(str(folder), preset).loglikelihood(requests("loglikelihood", arguments), True)[0][0]
              for preset in ("f16", "k8v8", "small")}
    plain = AutoModelForCausalLM.from_pretrained(folder)
    context, continuation = InnerKVLM(str(folder))._encode_pair(*arguments[0])
    logits = plain(torch.tensor([context + continuation])).logits[0].double().log_softmax(-1)
    exact = sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(continuation))
    assert totals["f16"] == pytest.approx(exact, abs=0.05)
    assert abs(totals["k8v8"] - exact) < abs(totals["small"] - exact)


def test_rolling_windows(folder):
    """Longer than the model's positions: disjoint windows, each scored as decoding would."""
    lm = InnerKVLM(str(folder), "base", max_length=300)
    [total] = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(ALICE[:500],)]), disable_tqdm=True)
    tokens = lm.tok_encode(ALICE[:500])
    first, second = tokens[:300], tokens[300:]
    expected = sum(lm._loglikelihood_tokens([(None, [lm.prefix_token_id], first), (None, tokens[199:300], second)],
                                            disable_tqdm=True)[i][0] for i in range(2))
    assert total == pytest.approx(expected, abs=1e-3)


def test_generate_until(folder):
    lm = InnerKVLM(str(folder), "f16", batch_size=2)
    plain = get_model("hf")(pretrained=str(folder), device="cpu", batch_size=2)
    options = {"until": ["e"], "max_gen_toks": 30, "do_sample": False}
    arguments = [(ALICE[:200], options), (ALICE[:90], options), (ALICE[300:400], options | {"until": ["\n"]})]
    texts = [each.generate_until(requests("generate_until", arguments), disable_tqdm=True) for each in (lm, plain)]
    assert texts[0] == texts[1]
    assert any(texts[0])


def test_what_it_does_not_do(folder, monkeypatch):
    with pytest.raises(ValueError, match='batch_size "auto".*give a number'):
        InnerKVLM(str(folder), batch_size="auto")
    with pytest.raises(ValueError, match="q4.*base"):
        InnerKVLM(str(folder), "q4")
    assert InnerKVLM(str(folder), device="cuda:0").device.type == "cpu"  # the harness's default, where there is none
    with monkeypatch.context() as patch, pytest.raises(ValueError, match='device "cuda:0".*device=cpu'):
        patch.setattr(torch.cuda, "is_available", lambda: True)
        InnerKVLM("a model that is not loaded", device="cuda:0")
    with pytest.raises(ValueError, match='device "meta"'):
        InnerKVLM(AutoModelForCausalLM.from_pretrained(folder).to("meta"))
    with pytest.raises(ValueError, match="continuation of 40 tokens; the model takes 30"):
        lm = InnerKVLM(str(folder), max_length=30)
        lm._loglikelihood_tokens([(None, [5], list(range(40)))])


def test_tasks_of_local_files(folder, tmp_path, monkeypatch):
    """All of python/examples/lm_eval, from the project's root as docs/python.md has it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tasks = TaskManager(include_path="python/examples/lm_eval", include_defaults=False)
    report = simple_evaluate("innerkv", {"pretrained": str(folder), "preset": "base"}, limit=1,
                             tasks=["gsm8k-local", "gsm8k-local-solutions", "passages"], task_manager=tasks,
                             gen_kwargs={"max_gen_toks": 8}, bootstrap_iters=0)
    results = report["results"]
    assert 0 < results["gsm8k-local-solutions"]["bits_per_byte,none"] < 20
    assert results["gsm8k-local"]["exact_match,number"] in (0, 1)
    assert results["passages"]["acc,none"] in (0, 1)
    [sample] = report["samples"]["gsm8k-local"]
    assert sample["arguments"][0][0].count("Question:") == 6


def test_the_command(monkeypatch):
    """The harness's own, which then knows the model."""
    called = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: called.append(get_model("innerkv")))
    runpy.run_module("innerkv.lm_eval", run_name="__main__")
    assert called == [InnerKVLM]


def test_passages():
    documents = runpy.run_path(str(ROOT / "python" / "examples" / "lm_eval" / "documents.py"))
    test = documents["passages"](items=20)["test"]
    text = " ".join(documents["ALICE"].read_text(encoding="utf-8").split())
    assert len(test) == 20 and len(set(test["label"])) == 4
    for document in test:
        assert len(document["passage"]) > 2400 and len(set(document["choices"])) == 4
        assert document["passage"] + " " + document["choices"][document["label"]] in text
    with pytest.raises(ValueError, match="ask for fewer"):
        documents["passages"](items=10**6)
