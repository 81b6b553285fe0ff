"""The harness's three questions beside the same computed from a table of logits; and its own evaluator where it is."""

from __future__ import annotations

import builtins
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gradatim.cli.main import main
from gradatim.config.settings import GptConfig, RecurrentConfig, TokenizerConfig
from gradatim.errors import ConfigError, LaunchError
from gradatim.evaluate.harness import Answers, harness_model
from gradatim.models import build_model
from gradatim.text.vocabulary import train_tokenizer

TEXT = ["the more i read, the more i learn, and i like it more than anything else."] * 3
CONTEXT = 12
MODELS = {
    "gpt": GptConfig(d_model=16, n_layers=2, n_heads=2, dropout=0.0, positions="rotary"),
    "lstm": RecurrentConfig(kind="lstm", d_model=12, n_layers=1, dropout=0.0),
}


@pytest.fixture(params=MODELS)
def answers(request: pytest.FixtureRequest) -> Answers:
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), TEXT)
    model: Any = build_model(MODELS[request.param], tokenizer.vocab_size, CONTEXT, seed=3).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that words differ
    return Answers(model, tokenizer, rows=3)


def table(answers: Answers, ids: list[int]) -> Any:
    """Log-probabilities of what follows each of some ids, in one pass."""
    with torch.no_grad():
        found, _ = answers.model(torch.tensor([ids]), answers.model.start(1))
    return found[0]


def direct(answers: Answers, before: list[int], scored: list[int]) -> tuple[float, bool]:
    ids = [answers.tokenizer.boundary, *before, *scored]
    inputs = ids[:-1] if answers.model.context is None else ids[:-1][-CONTEXT:]
    found = table(answers, inputs)[-len(scored) :]
    picked = found[torch.arange(len(scored)), torch.tensor(scored)]
    return float(picked.sum()), bool((found.argmax(-1) == torch.tensor(scored)).all())


PAIRS = [
    ("", "the more"),
    ("the more", " i learn"),
    ("the more i read,", " the more i learn"),
    ("i", " like it"),
    ("the more i read, the more i learn, and i like", " it"),
]


def test_likelihoods_are_those_of_the_logits_whatever_stands_beside_them(answers: Answers) -> None:
    found = answers.likelihoods(PAIRS)
    for (context, continuation), answer in zip(PAIRS, found, strict=True):
        encode = answers.tokenizer.encode
        assert encode(context) + encode(continuation) == encode(context + continuation)
        total, greedy = direct(answers, encode(context), encode(continuation))
        assert answer == (pytest.approx(total, abs=1e-9), greedy)
        assert answers.likelihoods([(context, continuation)])[0] == (pytest.approx(total, abs=1e-9), greedy)


def test_a_space_belongs_to_its_word_wherever_the_task_puts_it(answers: Answers) -> None:
    here, there = answers.likelihoods([("the more", " i learn"), ("the more ", "i learn")])
    assert here == (pytest.approx(there[0], abs=1e-9), there[1])


def test_a_token_across_the_seam_counts_with_the_continuation(answers: Answers) -> None:
    """Cutting by the number of the context's tokens would leave nothing of such a continuation."""
    encode = answers.tokenizer.encode
    whole = encode("the more")
    assert len(whole) == 2 and len(encode("the mor")) >= 2
    row = answers.row("the mor", "e")
    assert row.targets[-row.scored :] == whole[1:]
    expected, _ = direct(answers, whole[:1], whole[1:])
    assert answers.likelihoods([("the mor", "e")])[0][0] == pytest.approx(expected, abs=1e-9)
    assert answers.likelihoods([("the more", ""), ("", "")]) == [(0.0, True)] * 2


def test_greedy_is_what_decoding_says(answers: Answers) -> None:
    encode, decode = answers.tokenizer.encode, answers.tokenizer.decode
    ids = table(answers, [answers.tokenizer.boundary, *encode("the more")])[-1]
    assert answers.until("the more", {"max_gen_toks": 1}) == decode([int(ids.argmax())])
    following = [
        token
        for token in range(answers.tokenizer.vocab_size)
        if encode("the more" + decode([token])) == [*encode("the more"), token]
    ]
    likeliest = max(following, key=lambda token: float(ids[token]))
    found = answers.likelihoods([("the more", decode([likeliest]))])
    assert found == [(pytest.approx(float(ids[likeliest]), abs=1e-9), likeliest == int(ids.argmax()))]
    rarest = decode([min(following, key=lambda token: float(ids[token]))])
    assert not answers.likelihoods([("the more", rarest)])[0][1]


def test_of_a_long_context_the_end_is_read_and_a_long_continuation_is_refused(answers: Answers) -> None:
    context = "the more i read, " * 9
    encode = answers.tokenizer.encode
    (found,) = answers.likelihoods([(context + "the more", " i learn")])
    assert found[0] == pytest.approx(direct(answers, encode(context + "the more"), encode(" i learn"))[0], abs=1e-9)
    if answers.model.context is None:
        assert answers.likelihoods([("", context)])[0][0] < 0
    else:
        with pytest.raises(ConfigError, match="longer than the model's context"):
            answers.likelihoods([("", context)])


@pytest.mark.parametrize("times", [0, 1, 2, 7])
def test_rolling_counts_each_token_once_with_the_fullest_context(answers: Answers, times: int) -> None:
    text = "the more i read, the more i learn, and so on; " * times
    tokens = answers.tokenizer.encode(text)
    row, total, done = [answers.tokenizer.boundary, *tokens], 0.0, 0
    length = CONTEXT if answers.model.context is not None else len(tokens)
    while done < len(tokens):  # windows one after another, the last moved back to the end of the text
        new = min(length, len(tokens) - done)
        end = done + new
        ids = row[max(0, end - length) : end]
        found = table(answers, ids)[-new:]
        total += float(found[torch.arange(new), torch.tensor(tokens[done:end])].sum())
        done = end
    assert answers.rolling(text) == pytest.approx(total, abs=1e-9)


def test_generation_ends_at_a_stop_string_and_takes_only_known_settings(answers: Answers) -> None:
    whole = answers.until("the", {"max_gen_toks": 12})
    assert len(whole) > 3
    stop = whole[2:4]
    assert answers.until("the", {"max_gen_toks": 12, "until": ["@@", stop]}) == whole[: whole.index(stop)]
    assert (
        answers.until("the", {"max_gen_toks": 12, "until": stop, "do_sample": False, "temperature": 0.0})
        == (whole[: whole.index(stop)])
    )
    drawn = {"do_sample": True, "temperature": 2.0, "top_k": 50, "seed": 1, "max_gen_toks": 8}
    assert answers.until("", drawn) == answers.until("", drawn)
    assert answers.until("the", {"max_gen_toks": 12, "top_k": 0}) == whole, "0 and -1 switch it off"
    assert answers.until("the", {"max_gen_toks": 12, "do_sample": True, "temperature": 0}) == whole
    with pytest.raises(ConfigError, match="num_beams"):
        answers.until("the", {"num_beams": 4})


def test_without_the_harness_the_way_to_it_is_told(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LaunchError, match="is not installed") as raised:
        harness_model(answers)
    assert raised.value.exit_code == 5 and "gradatim[harness]" in raised.value.problems[0].attempt


def test_requests_are_answered_in_their_order(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the harness's base class."""

    class LM:
        def __init__(self) -> None:
            self.cache_hook = SimpleNamespace(add_partial=lambda *told: self.told.append(told))
            self.told: list[Any] = []

    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["lm_eval.api.model"], "LM", LM, raising=False)
    model = harness_model(answers, "mine")
    requests = [SimpleNamespace(args=pair) for pair in PAIRS]
    assert model.loglikelihood(requests) == answers.likelihoods(PAIRS)
    texts = [SimpleNamespace(args=("the more",)), SimpleNamespace(args=("",))]
    assert model.loglikelihood_rolling(texts) == [answers.rolling("the more"), 0.0]
    asked = [SimpleNamespace(args=("the", {"until": ["e"], "max_gen_toks": 3}))]
    assert model.generate_until(asked) == [answers.until("the", {"until": ["e"], "max_gen_toks": 3})]
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    again = model.generate_until([SimpleNamespace(args=("the", drawn))] * 4)
    assert len(set(again)) > 1 and again[2] == answers.until("the", drawn, 2), "each is drawn anew"
    assert model.generate_until([SimpleNamespace(args=("the", drawn))] * 4) == again
    assert len(model.told) == len(PAIRS) + 3 + 8 and model.tokenizer_name == "mine"


TASKS = {
    "choose": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "label",
               "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
    "roll": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
             "metric_list": [{"metric": "bits_per_byte"}]},
    "write": {"output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
              "generation_kwargs": {"until": ["."], "max_gen_toks": 4}, "metric_list": [{"metric": "exact_match"}]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_the_harness_itself_asks_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the harness is optional: pip install 'gradatim[harness]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    Path("text.txt").write_text("the more i read the more i learn\n" * 20, encoding="utf-8")
    rows = [{"text": "the more i read", "choices": [" the more", " learn i"], "label": n % 2} for n in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("tasks").mkdir()
    for name, fields in TASKS.items():
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
                  "test_split": "test", "doc_to_text": "{{text}}"}  # fmt: skip
        Path("tasks", f"{name}.yaml").write_text(json.dumps({**common, **fields}), encoding="utf-8")
    small = ["--context", "24", "--model.d_model", "16", "--model.n_layers", "1", "--model.n_heads", "2"]
    more = ["--data.train", "text.txt", "--data.tokenizer.kind", "char", "--global_batch", "4"]
    assert main(["train", "gpt", "--run", "r", "--steps", "2", *small, *more]) == 0
    capsys.readouterr()
    assert main(["harness", "r", *TASKS, "--include", "tasks", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == dict.fromkeys(TASKS, 6)
    assert found["results"]["choose"]["acc"] == 0.5
    from gradatim.train import Run

    run = Run.open(Path("r"))
    per_byte = -Answers(run.model(), run.tokenizer).rolling("the more i read") / len("the more i read")
    assert found["results"]["roll"]["bits_per_byte"] == pytest.approx(per_byte / 0.6931471805599453)
    assert 0 <= found["results"]["write"]["exact_match"] <= 1
    assert main(["harness", "r", "no-such-task", "--json"]) == 2
    assert "no such task" in json.loads(capsys.readouterr().out)["error"]["problems"][0]["what"]
