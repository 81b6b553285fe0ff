"""ARPA files: what others would score with them, what comes back, and what is said of files that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.cli.main import main
from gradatim.config.settings import NgramConfig, TokenizerConfig
from gradatim.errors import ConfigError, DataError, LaunchError
from gradatim.evaluate.perplexity import evaluate_tokens
from gradatim.interop.arpa import escape, import_arpa, read_arpa, read_words, token_names, unescape, write_arpa
from gradatim.models.ngram import fit_ngram
from gradatim.text.tokenizer import load_tokenizer
from gradatim.text.vocabulary import train_tokenizer
from gradatim.train import Run

LETTERS = "ab %\n\u00a0é"
TEXT = ["the cat sat on the mat", "the dog sat on the cat", "a cat", "", "100%20 of the <s> cat <unk> 日本 </s>"]
CHAR = train_tokenizer(TokenizerConfig(kind="char"), [LETTERS])
TOKENIZERS = {
    "char": train_tokenizer(TokenizerConfig(kind="char"), TEXT),
    "word": train_tokenizer(TokenizerConfig(kind="word", min_count=2), TEXT),
    "bpe": train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=270), TEXT),
    "wordpiece": train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=60), TEXT),
}
every_tokenizer = pytest.mark.parametrize("kind", list(TOKENIZERS))


def fit(tokenizer, texts, order=3, smoothing="kneser-ney"):
    config = NgramConfig(order=order, smoothing=smoothing, discount_fallback=True)
    ids = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.boundary]]
    return fit_ngram(config, np.array(ids), tokenizer.vocab_size, tokenizer.boundary)


def read_back(path, tokenizer):
    ids = {name: i for i, name in enumerate(token_names(tokenizer))}
    return read_arpa(path, ids, tokenizer.vocab_size, tokenizer.boundary, tokenizer.unknown)


def table(model, ids):
    """Log-probabilities after each of the ids."""
    return model(torch.tensor([ids]), model.start(1))[0][0].numpy()


def parse(path):
    """What another program sees: counts of the header, and every n-gram's log10 probability and weight."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    header, *sections, end = blocks
    assert header.split("\n")[0] == "\\data\\" and end == "\\end\\\n"
    counts = [int(line.split("=")[1]) for line in header.split("\n")[1:]]
    grams = {}
    for k, section in enumerate(sections, start=1):
        heading, *rows = section.split("\n")
        assert heading == f"\\{k}-grams:"
        assert len(rows) == counts[k - 1]
        for row in rows:
            log_prob, words, *weight = row.split("\t")
            gram = tuple(words.split())
            assert len(gram) == k and " ".join(gram) == words and gram not in grams
            assert (len(weight) == 1) is (k < len(sections))
            grams[gram] = (float(log_prob), float(weight[0]) if weight else 0.0)
    return counts, grams


def katz(grams, context, word):
    """log10 p(word | context), as toolkits back off."""
    if (*context, word) in grams:
        return grams[*context, word][0]
    if not context:
        return -math.inf
    return grams.get(context, (0.0, 0.0))[1] + katz(grams, context[1:], word)


documents = st.lists(st.text(LETTERS, max_size=8), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("arpa") / "model.arpa"


# --------------------------------------------------------------------------- writing


@settings(deadline=None, max_examples=60)
@given(texts=documents, order=st.integers(1, 4), smoothing=st.sampled_from(["kneser-ney", "mle"]), ask=documents)
def test_others_score_with_the_file_as_we_do(place, texts, order, smoothing, ask):
    """Every word after every context of some other text, by backing off from dictionaries."""
    model = fit(CHAR, texts, order, smoothing)
    write_arpa(model, CHAR, place)
    counts, grams = parse(place)
    assert counts == [len(t.word) + (k == 0) for k, t in enumerate(model.tables)]
    assert all(gram[:-1] in grams for gram in grams if len(gram) > 1)
    assert all(log_prob <= 0 for log_prob, _ in grams.values())
    names = token_names(CHAR)
    names[CHAR.boundary], names[CHAR.unknown] = "</s>", "<unk>"
    for text in ask:
        ids = [CHAR.boundary, *CHAR.encode(text)]
        for position, row in enumerate(table(model, ids)):
            words = ("<s>", *(names[i] for i in ids[1 : position + 1]))
            context = words[len(words) - min(len(words), model.order - 1) :]
            expected = np.array([katz(grams, context, name) for name in names])
            impossible = expected <= -99 + 1  # -99 stands for never
            np.testing.assert_array_equal(row == -math.inf, impossible)
            np.testing.assert_allclose(
                row[~impossible], expected[~impossible] * math.log(10), rtol=1e-6, atol=2e-6 * math.log(10)
            )


@settings(deadline=None, max_examples=60)
@given(texts=documents, order=st.integers(1, 4), smoothing=st.sampled_from(["kneser-ney", "mle"]), ask=documents)
def test_what_was_written_comes_back(place, texts, order, smoothing, ask):
    model = fit(CHAR, texts, order, smoothing)
    write_arpa(model, CHAR, place)
    again = read_back(place, CHAR)
    assert again.order == len(model.tables)
    for one, other in zip(model.tables, again.tables, strict=True):
        np.testing.assert_array_equal(one.word, other.word)
        np.testing.assert_array_equal(one.first, other.first)
        np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-6, atol=1e-7)
    for text in ask:
        ids = [CHAR.boundary, *CHAR.encode(text), CHAR.boundary, *CHAR.encode(texts[0])]
        np.testing.assert_allclose(table(again, ids), table(model, ids), rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(np.exp(table(again, ids)).sum(-1), 1.0, rtol=1e-5)


@every_tokenizer
def test_tokens_of_every_kind_come_back(kind, tmp_path):
    tokenizer, path = TOKENIZERS[kind], tmp_path / "deep" / "down" / "model.arpa"
    model = fit(tokenizer, TEXT)
    write_arpa(model, tokenizer, path)
    assert [p.name for p in path.parent.iterdir()] == ["model.arpa"]
    tokenizer.save(tmp_path / "tokenizer.json")
    again = import_arpa(path, tmp_path / "run", tmp_path / "tokenizer.json")
    ids = [tokenizer.boundary, *tokenizer.encode("the dog on a mat sat 日 100%20 <s>"), tokenizer.boundary]
    np.testing.assert_allclose(table(again, ids), table(model, ids), rtol=1e-6, atol=2e-6)
    found = [evaluate_tokens(m, tokenizer, np.array(ids), 40).nats_per_token for m in (model, again)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@given(st.text())
def test_a_word_holds_no_white_space_and_no_special_name_and_comes_back(token):
    word = escape(token)
    assert unescape(word) == token
    assert len((word + ".").split()) == 1 and "\0" not in word
    assert word not in ("<s>", "</s>", "<unk>", "<UNK>")


def test_words_of_text_stay_as_they_are():
    """Toolkits look the words of a text up in our files."""
    for word in ("cat", "100%", "%", "<s", "naïve", "日本", "50%-60%", "it's"):
        assert escape(word) == word
    assert [escape(word) for word in (" ", "<s>", "%20", "<unk>")] == ["%20", "%3Cs>", "%2520", "%3Cunk>"]


def test_what_has_no_back_off_form_is_refused(tmp_path):
    with pytest.raises(DataError, match="additive") as caught:
        write_arpa(fit(CHAR, ["ab"], smoothing="additive"), CHAR, tmp_path / "model.arpa")
    assert caught.value.problems[0].allowed == "kneser-ney or mle"
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "model.arpa").mkdir()
    for path in (tmp_path / "file" / "model.arpa", tmp_path / "model.arpa"):
        with pytest.raises(LaunchError, match="cannot be written") as caught:
            write_arpa(fit(CHAR, ["ab"]), CHAR, path)
        assert caught.value.problems[0].where == str(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "model.arpa"]


# --------------------------------------------------------------------------- reading others' files

FOREIGN = """\
a line that some tool wrote before the beginning

\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-99\t<s>\t-0.2
-1\t</s>
-2\t<unk>\t0
-0.5\tcat\t-0.3
-0.6\tthe\t-0.4
-99\tdog

\\2-grams:
-0.1\t<s> the
-0.15\tthe cat
-1.5\tthe <unk>
-0.05\tcat </s>

\\end\\
what follows is nobody's business
"""
IDS = {"cat": 2, "the": 3, "dog": 4}


def read_text(path, text, unknown=1):
    path.write_bytes(text.encode())
    return read_arpa(path, IDS, 5, 0, unknown)


@pytest.mark.parametrize("change", [lambda s: s, lambda s: s.replace("\n", "\r\n"), lambda s: s.rstrip("\n")])
def test_a_file_of_another_program_is_read_as_katz_says(tmp_path, change):
    model = read_text(tmp_path / "model.arpa", change(FOREIGN))
    assert model.order == 2 and [len(t.word) for t in model.tables] == [5, 4]
    found = table(model, [0, 3, 2, 1]) / math.log(10)
    never = -math.inf
    expected = [  # </s> <unk> cat the dog
        [-1.2, -2.2, -0.7, -0.1, never],
        [-1.4, -1.5, -0.15, -1.0, never],
        [-0.05, -2.3, -0.8, -0.9, never],
        [-1.0, -2.0, -0.5, -0.6, never],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_unknown_words_score_as_the_file_s_unk(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(FOREIGN)
    assert read_words(path) == ["cat", "the", "dog"]
    model = import_arpa(path, tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    ids = [tokenizer.boundary, *tokenizer.encode("the zebra cat")]
    assert ids[2] == tokenizer.unknown
    found = table(model, ids) / math.log(10)
    assert found[1, tokenizer.unknown] == pytest.approx(-1.5)
    assert found[2, ids[3]] == pytest.approx(-0.5)
    result = evaluate_tokens(model, tokenizer, np.array([*ids[1:], tokenizer.boundary]), 13)
    assert (result.tokens, result.unknown, result.impossible) == (4, 1, 0)
    assert result.nats_per_token == pytest.approx((0.1 + 1.5 + 0.5 + 0.05) * math.log(10) / 4)


def test_a_file_without_unk_thinks_unknown_words_impossible(tmp_path):
    lines = [line for line in FOREIGN.split("\n") if "<unk>" not in line]
    text = "\n".join(lines).replace("1=6", "1=5").replace("2=4", "2=3")
    path = tmp_path / "model.arpa"
    path.write_text(text)
    model = import_arpa(path, tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    assert table(model, [tokenizer.boundary])[0, tokenizer.unknown] == -math.inf


@pytest.mark.parametrize("name", ["<unk>", "<UNK>"])
def test_where_nothing_is_unknown_n_grams_of_unk_are_left_out(tmp_path, name):
    text = FOREIGN.replace("<unk>", name)
    known = read_text(tmp_path / "model.arpa", text)
    assert table(known, [3])[0, 1] == pytest.approx(-1.5 * math.log(10))
    if name == "<unk>":
        model = read_text(tmp_path / "model.arpa", text, unknown=None)
        assert [len(t.word) for t in model.tables] == [5, 3]
        assert table(model, [3])[0, 1] == -math.inf


# --------------------------------------------------------------------------- files that are none


def line_of(text, part):
    return next(n for n, line in enumerate(text.split("\n"), start=1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "at", "what", "got"),
    [
        ("\\data\\", "\\date\\", None, "not a whole ARPA file", "no \\data\\"),
        ("\\end\\", "\\stop\\", "\\stop", "no n-gram", "\\stop\\"),
        ("1=6", "1=7", "\\end", "not a whole ARPA file", "6"),
        ("ngram 2=4\n", "", "\\end", "not a whole ARPA file", "4"),
        ("ngram 2=4", "ngram 2=many", "2=many", "no n-gram", "ngram 2=many"),
        ("\\2-grams:", "\\3-grams:", "\\3-grams", "not a whole ARPA file", "\\3-grams:"),
        ("\\1-grams:\n", "", "-99\t<s>", "no n-gram", "<s>"),
        ("-0.15\tthe cat", "-0.15\tthe cat dog", "cat dog", "3 words in the section of 2-grams", "the cat dog"),
        ("-0.15\tthe cat", "-0.15\tcat", "-0.15\tcat", "1 words in the section of 2-grams", "cat"),
        ("-0.15\tthe cat", "-0.15\tthe  cat", "the  cat", "3 words in the section of 2-grams", "the  cat"),
        ("-0.15\tthe cat", "minus\tthe cat", "minus", "no n-gram", "minus\tthe cat"),
        ("-0.15\tthe cat", "nan\tthe cat", "nan", "no n-gram", "nan\tthe cat"),
        ("-0.15\tthe cat", "-inf\tthe cat", "-inf", "no n-gram", "-inf\tthe cat"),
        ("-0.15\tthe cat", "-0.15 the cat", "-0.15 the", "no n-gram", "-0.15 the cat"),
        ("-0.15\tthe cat", "-0.15\tthe cat\t0\t0", "cat\t0\t0", "no n-gram", "the cat"),
        ("cat\t-0.3", "cat\tx", "cat\tx", "no n-gram", "cat\tx"),
        ("-0.15\tthe cat", "0.15\tthe cat", "0.15\tthe", "a probability above 1", "0.15"),
        ("-0.15\tthe cat", "-0.15\tthe rat", "the rat", "no unigram of this vocabulary", "rat"),
        ("-0.15\tthe cat", "-0.15\tthe <s>", "the <s>", "<s> can only stand first and </s> only last", "the <s>"),
        ("-0.15\tthe cat", "-0.15\t</s> cat", "</s> cat", "<s> can only stand first", "</s> cat"),
        ("the <unk>", "the cat", "-1.5\tthe cat", "the same n-gram a second time", "the cat"),
        ("-99\tdog", "-99\tcat", "-99\tcat", "the same n-gram a second time", "cat"),
        ("-99\tdog", "-99\t</s>", "-99\t</s>", "the same n-gram a second time", "</s>"),
    ],
)
def test_a_mistake_is_one_error_with_its_line(tmp_path, old, new, at, what, got):
    text, path = FOREIGN.replace(old, new, 1), tmp_path / "model.arpa"
    assert text != FOREIGN
    with pytest.raises(DataError) as caught:
        read_text(path, text)
    (problem,) = caught.value.problems
    line = text.count("\n") if at is None else line_of(text, at)
    assert problem.where == f"{path}:{line}"
    assert what in problem.what
    assert got in problem.got
    assert problem.allowed


def test_a_context_that_was_pruned_away_is_missed(tmp_path):
    text = FOREIGN.replace("2=4", "2=4\nngram 3=1").replace("\\end\\", "\\3-grams:\n-0.2\tcat the cat\n\n\\end\\")
    with pytest.raises(DataError, match="1 3-grams have a context that is no 2-gram"):
        read_text(tmp_path / "model.arpa", text)


@pytest.mark.parametrize("text", ["", "\n\n", "the cat sat on the mat\n", "{}", "\\data\\\n", "\\data\\\nngram 1=0\n"])
def test_a_file_without_an_end_is_not_whole(tmp_path, text):
    with pytest.raises(DataError, match="not a whole ARPA file"):
        read_text(tmp_path / "model.arpa", text)


def test_a_file_without_n_grams_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no n-grams"):
        read_text(tmp_path / "model.arpa", "\\data\\\nngram 1=0\n\n\\1-grams:\n\n\\end\\\n")


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "model.arpa"
    for missing in (path, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_arpa(missing, IDS, 5, 0, 1)
    path.write_bytes(FOREIGN.encode().replace(b"-0.5\tcat", b"-0.5\tc\xe9t"))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read_arpa(path, IDS, 5, 0, 1)
    assert caught.value.problems[0].where.startswith(f"{path}:")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_part_of_a_file_passes_for_the_whole(place, data):
    """Cut anywhere, or with any line left out."""
    raw = FOREIGN[: FOREIGN.index("\\end\\") + 5]
    lines = raw.split("\n")
    gone = data.draw(st.sampled_from([n for n, line in enumerate(lines) if n > 1 and line]))
    cut = data.draw(st.integers(0, len(raw) - 1))
    for text in (raw[:cut], "\n".join(lines[:gone] + lines[gone + 1 :])):
        with pytest.raises(DataError) as caught:
            read_text(place, text)
        (problem,) = caught.value.problems
        assert problem.where.startswith(f"{place}:")


def test_a_run_is_made_once(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(FOREIGN)
    import_arpa(path, tmp_path / "run")
    with pytest.raises(ConfigError):
        import_arpa(path, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError):
        import_arpa(path, tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_the_config_of_a_run_says_what_is_known(tmp_path, capsys):
    (tmp_path / "model.arpa").write_text(FOREIGN)
    import_arpa(tmp_path / "model.arpa", tmp_path / "run")
    config = Run.open(tmp_path / "run").config
    assert (config.data.train, config.data.tokenizer.kind, config.data.tokenizer.path) == ((), "word", None)
    assert (tmp_path / "run/config.yaml").read_text().startswith(f"# imported from '{tmp_path}/model.arpa'")

    TOKENIZERS["bpe"].save(tmp_path / "tokenizer.json")
    write_arpa(fit(TOKENIZERS["bpe"], TEXT), TOKENIZERS["bpe"], tmp_path / "own.arpa")
    import_arpa(tmp_path / "own.arpa", tmp_path / "own", tmp_path / "tokenizer.json")
    told = Run.open(tmp_path / "own").config.data.tokenizer
    assert (told.kind, told.vocab_size, told.path) == ("bpe", 270, str(tmp_path / "tokenizer.json"))

    assert main(["evaluate", str(tmp_path / "own")]) == 3  # and no vocabulary is learned to find that out
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/own: the run has neither test nor validation text",
        "    try: --text FILE",
    ]
    (tmp_path / "text.txt").write_text("a text\n")
    assert main(["evaluate", str(tmp_path / "own"), "--text", str(tmp_path / "text.txt")]) == 0
    assert main(["train", str(tmp_path / "own/config.yaml"), "--run", str(tmp_path / "own"), "--resume"]) == 2
    assert "there is nothing to learn from" in capsys.readouterr().err
