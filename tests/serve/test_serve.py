"""The API against the library it stands on: what is served is what ``generate`` and the likelihoods say."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, TokenizerConfig, WindowConfig
from gradatim.decode.generate import generate
from gradatim.decode.sampling import Sampling
from gradatim.errors import ConfigError, DataError
from gradatim.evaluate.likelihood import log_probs
from gradatim.models import build_model
from gradatim.models.ngram import fit_ngram
from gradatim.serve.app import LARGEST_BODY, create_app, read_keys
from gradatim.serve.engine import LONGEST_PROMPT, Engine
from gradatim.serve.page import PAGE
from gradatim.serve.protocol import FIELDS, read_request
from gradatim.text.vocabulary import train_tokenizer

TEXT = ["abcd dcba abba cddc", "bad cab", "dad", "a cad", "", "cab cab", "äöü 中文 😀"]
CHAR = train_tokenizer(TokenizerConfig(kind="char"), TEXT)
BYTES = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=260), TEXT)
WORD = train_tokenizer(TokenizerConfig(kind="word"), TEXT)
TINY = {"d_model": 8, "n_layers": 2, "n_heads": 2, "vocab_multiple": 8}
CONFIGS = {
    "gpt": GptConfig(**TINY),
    "lstm": RecurrentConfig(kind="lstm", d_model=8, n_layers=2),
    "window": WindowConfig(window=4, d_model=8, d_ff=12),
    "ngram": NgramConfig(order=4, discount_fallback=True),
}
URL = "/v1/completions"


def build(name, tokenizer=CHAR, context=8):
    config = CONFIGS[name]
    if isinstance(config, NgramConfig):
        ids = [token for text in TEXT for token in [*tokenizer.encode(text), tokenizer.boundary]]
        return fit_ngram(config, np.array(ids), tokenizer.vocab_size, tokenizer.boundary)
    model = build_model(config, tokenizer.vocab_size, context).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5, generator=generator)
    return model


@pytest.fixture
def serve():
    """Makes a client of a model; its engine ends with the test."""
    engines = []

    def start(model, tokenizer=CHAR, keys=None, waiting=16):
        engines.append(Engine(model, tokenizer, waiting))
        return TestClient(create_app(engines[-1], "m", keys))

    yield start
    for engine in engines:
        engine.close()
        engine.join()


def ask(client, status=200, **fields):
    answer = client.post(URL, json=fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def events(client, **fields):
    answer = client.post(URL, json={**fields, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.content.split(b"\n\n")
    assert parts[-2:] == [b"data: [DONE]", b""]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]


def joined(chunks, index=0):
    """The choice that a stream's chunks amount to."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    lists = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
    return {
        "index": index,
        "text": "".join(choice["text"] for choice in choices),
        "logprobs": {key: [x for one in lists for x in one[key]] for key in lists[0]} if lists else None,
        "finish_reason": choices[-1]["finish_reason"],
    }


# --------------------------------------------------------------------------- what is generated


@pytest.mark.parametrize("tokenizer", [CHAR, BYTES], ids=["char", "bytes"])
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_generate(serve, name, tokenizer):
    model = build(name, tokenizer)
    client = serve(model, tokenizer)
    for temperature, stop, n in [(0, [], 1), (1.3, ["b", "ab"], 4), (0.9, [], 2)]:
        prompts = ["a c", ""]
        fields = {"prompt": prompts, "max_tokens": 20, "temperature": temperature, "top_p": 0.9, "n": n, "seed": 5}
        fields |= {"stop": stop} if stop else {}
        answer = ask(client, **fields, logprobs=2)
        chunks = events(client, **fields, logprobs=2)
        sampling = Sampling(temperature=temperature, top_p=0.9, seed=5)
        counted = 0
        for place, prompt in enumerate(prompts):
            found, _ = generate(model, tokenizer, prompt, max_new=20, n=n, sampling=sampling, stop=tuple(stop))
            for row, completion in enumerate(found):
                choice = answer["choices"][place * n + row]
                assert choice["text"] == completion.text
                stopped = completion.tokens < 20 or completion.ended
                assert choice["finish_reason"] == "stop" if stopped else stop or choice["finish_reason"] == "length"
                counted += completion.tokens
                if not stop:  # else the tokens of the stop string are left out
                    assert len(choice["logprobs"]["tokens"]) == completion.tokens
                    assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(completion.log_probability)
                assert joined(chunks, place * n + row) == choice
        prompt_tokens = sum(len(tokenizer.encode(prompt)) for prompt in prompts)
        assert answer["usage"] == {
            "prompt_tokens": prompt_tokens, "completion_tokens": counted, "total_tokens": prompt_tokens + counted,
            "prompt_tokens_dropped": 0,
        }  # fmt: skip


def test_a_stream_holds_whole_characters_and_closes_with_usage_when_asked(serve):
    model = build("lstm", BYTES)
    client = serve(model, BYTES)
    fields = {"prompt": "😀", "max_tokens": 60, "seed": 3}
    chunks = events(client, **fields, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == ask(client, **fields)["usage"]
    found, _ = generate(model, BYTES, "😀", max_new=60, sampling=Sampling(temperature=1.0, seed=3))
    assert joined(chunks[:-1])["text"] == found[0].text
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "text_completion" for chunk in chunks)


def test_seeds_repeat_and_their_absence_does_not(serve):
    client = serve(build("lstm"))
    texts = [ask(client, prompt="a", max_tokens=40, seed=9)["choices"][0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len({ask(client, prompt="a", max_tokens=40)["choices"][0]["text"] for _ in range(4)}) > 1


@pytest.mark.parametrize("name", CONFIGS)
def test_echo_reports_the_likelihood_of_the_prompt(serve, name):
    model, prompt = build(name), "a cab"
    choice = ask(serve(model), prompt=prompt, max_tokens=0, echo=True, logprobs=3)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
    assert choice["logprobs"]["tokens"] == list(prompt)
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    expected = log_probs(model, np.array(CHAR.encode(prompt)), CHAR.boundary, stride=1)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.tolist())
    for token, value, top in zip(prompt, expected, choice["logprobs"]["top_logprobs"], strict=True):
        assert top[token] == pytest.approx(value)
        assert len(top) in (3, 4)
        assert max(top.values()) >= value - 1e-12


def test_a_prompt_beyond_the_context_has_no_probability_where_it_was_not_read(serve):
    model, prompt = build("gpt"), "abcd dcba abba"
    answer = ask(serve(model), prompt=prompt, max_tokens=1, temperature=0, echo=True, logprobs=0)
    values = answer["choices"][0]["logprobs"]["token_logprobs"]
    dropped = len(prompt) + 1 - 8  # the boundary before it included
    assert answer["usage"]["prompt_tokens_dropped"] == dropped
    assert [value is None for value in values] == [True] * dropped + [False] * (len(prompt) + 1 - dropped)
    seen, _ = model(torch.tensor([CHAR.encode(prompt[-8:])]), model.start(1))
    assert values[dropped:-1] == pytest.approx(
        [seen[0, i, CHAR.encode(c)[0]].item() for i, c in enumerate(prompt[-7:])]
    )
    assert values[-1] == pytest.approx(seen[0, -1].max().item())


def test_words_follow_the_prompt_after_a_space(serve):
    client = serve(build("ngram", WORD), WORD)
    fields = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
    first = ask(client, prompt="bad", **fields)["choices"][0]
    assert first["text"] == "bad cab"
    assert first["logprobs"]["text_offset"] == [0, 3]
    assert ask(client, prompt="bad ", **fields)["choices"][0]["text"] == "bad cab"


def test_tokens_after_a_stop_string_are_left_out(serve):
    client = serve(build("lstm"))
    fields = {"prompt": "ca", "seed": 1, "max_tokens": 12}
    whole = ask(client, **fields)["choices"][0]["text"]
    stop = whole[4:6]
    answer = ask(client, **fields, stop=["never", stop], logprobs=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert choice["logprobs"]["tokens"] == list(choice["text"])
    assert answer["usage"]["completion_tokens"] == len(choice["text"]) + 2
    assert joined(events(client, **fields, stop=["never", stop], logprobs=0)) == choice


# --------------------------------------------------------------------------- what is refused


WRONG = {
    "prompt": [3, [], ["a", 1], ["a"] * 65, "\ud800", {}],
    "max_tokens": [-1, 1.0, "5", True, 5000, 10**30],
    "temperature": [-0.1, "hot", True, 10**400],
    "top_p": [0, 1.5],
    "n": [0, 17, False],
    "stop": ["", [], ["a"] * 5, ["a", ""], "x" * 300, 1],
    "seed": [2**63, 1.5],
    "stream": [1, "true"],
    "stream_options": [{"include_usage": 1}, {"other": True}, []],
    "echo": ["yes"],
    "logprobs": [21, -1, True],
    "top_k": [0], "min_p": [2], "repetition_penalty": [0.5], "model": ["other", 1], "user": [1],
    "best_of": [2, True], "frequency_penalty": [0.5], "presence_penalty": [-1], "logit_bias": [{"1": 2}],
    "suffix": ["x"],
}  # fmt: skip


def test_every_field_is_checked():
    assert WRONG.keys() == FIELDS.keys()
    for name, values in WRONG.items():
        for value in values:
            body = {"prompt": "a", name: value} | ({"stream": True} if name == "stream_options" else {})
            with pytest.raises(ConfigError) as caught:
                read_request(json.dumps(body).encode(), "m")
            assert [p.where for p in caught.value.problems] == [name], (name, value)
            assert caught.value.problems[0].got
            assert caught.value.problems[0].allowed


def test_fields_that_ask_for_nothing_are_taken():
    nothing = {"best_of": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "suffix": ""}
    asked = read_request(json.dumps({"prompt": "a", "user": "me", "model": "m", **nothing}).encode(), "m")
    assert asked.prompts == ("a",)
    nulls = dict.fromkeys(set(FIELDS) - {"prompt"})
    assert read_request(json.dumps({"prompt": ["a", "b"], **nulls}).encode(), "m").prompts == ("a", "b")


def test_all_problems_come_in_one_answer(serve):
    client = serve(build("ngram"))
    answer = ask(client, 400, n=0, max_tokens="many", temprature=1, stream_options={})["error"]
    assert answer["type"] == "invalid_request_error"
    assert answer["param"] == "temprature"
    assert [p["where"] for p in answer["problems"]] == ["temprature", "n", "max_tokens", "prompt", "stream_options"]
    assert answer["problems"][0]["try"] == "temperature"
    assert "max_tokens" in answer["message"]
    many = ask(client, 400, prompt="a", **{f"x{i}": 1 for i in range(1000)})["error"]["problems"]
    assert len(many) == 21


def test_a_field_with_a_name_that_is_no_text_is_refused_like_another(serve):
    client = serve(build("ngram"))
    answer = client.post(URL, content=b'{"prompt":"a","\\ud800":1}', headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == r"\ud800"
    deep = '{"prompt":"a","x":' + "[" * 900 + "]" * 900 + "}"
    assert client.post(URL, content=deep, headers={"content-type": "application/json"}).status_code == 400


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b'{"prompt": NaN}', b'{"prompt":"a","prompt":"b"}', b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(serve, raw):
    answer = serve(build("ngram")).post(URL, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"


def test_routes_types_and_sizes(serve):
    client = serve(build("ngram"))
    assert client.get(URL).status_code == 405
    assert client.get("/v2").json()["error"]["problems"][0]["what"] == "Not Found"
    assert client.post(URL, data={"prompt": "a"}).status_code == 415
    json_type = {"content-type": "application/json"}
    large = json.dumps({"prompt": "a" * LARGEST_BODY}).encode()
    assert client.post(URL, content=large, headers=json_type).status_code == 413
    assert client.post(URL, content=iter([large[:9], large[9:]]), headers=json_type).status_code == 413
    long = ask(client, 400, prompt=["a", "a" * (LONGEST_PROMPT + 1)])["error"]
    assert long["problems"][0]["where"] == "prompt[1]"
    listed = client.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["m"]
    assert client.get("/v1/models/m").json() == listed["data"][0]
    assert client.get("/v1/models/x").status_code == 404


def test_the_page_needs_nothing_from_elsewhere(serve):
    answer = serve(build("ngram"), keys=["k"]).get("/")
    assert answer.text == PAGE
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert re.findall(r"https?:|//[a-z]|@import|url\(|innerHTML", PAGE) == []
    assert re.findall(r'(?:src|href)="([^"]*)"', PAGE) == ["data:,"]


def test_keys(serve, tmp_path):
    file = tmp_path / "keys"
    file.write_text("\nfirst\n  second  \n")
    client = serve(build("ngram"), keys=read_keys(file))
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    for header in ["Bearer first", "bearer second"]:
        answer = client.post(URL, json={"prompt": "a"}, headers={"authorization": header})
        assert answer.status_code == 200
    for header in ["", "Bearer", "Bearer ", "Bearer fir", "Basic first", "first", b"Bearer \xff"]:
        for answer in (
            client.post(URL, json={"prompt": "a"}, headers={"authorization": header}),
            client.get("/v1/models", headers={"authorization": header}),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
    for text in ["", "\n \n", "a key\n", "schlüssel\n"]:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            read_keys(file)
    with pytest.raises(DataError):
        read_keys(tmp_path / "none")


# --------------------------------------------------------------------------- waiting, leaving, failing


class Slow:
    """A model that waits for permission before every token, and counts them."""

    def __init__(self, model):
        self.model, self.vocab_size, self.context = model, model.vocab_size, model.context
        self.start, self.log_prob = model.start, model.log_prob
        self.go, self.calls = threading.Semaphore(0), 0

    def __call__(self, ids, state):
        assert self.go.acquire(timeout=10)
        self.calls += 1
        return self.model(ids, state)


async def asgi(app, body, leave):
    """Ask as a client that goes away once ``leave`` is set; what was sent to it."""
    sent, asked = [], False

    async def receive():
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": URL, "raw_path": URL.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"content-type", b"application/json")], "client": None, "server": None,
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


ENDLESS = {"prompt": "a", "max_tokens": 1000, "temperature": 0, "stop": "zzz"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation_and_gives_up_its_place(stream):
    async def scene():
        model = Slow(build("lstm"))
        engine = Engine(model, CHAR, waiting=1)
        app = create_app(engine, "m")
        leave = [asyncio.Event(), asyncio.Event()]
        never = asyncio.Event()
        body = {**ENDLESS, "stream": stream}
        first = asyncio.create_task(asgi(app, body, leave[0]))
        await until(lambda: engine.load() == (1, 0))
        second = asyncio.create_task(asgi(app, body, leave[1]))
        await until(lambda: engine.load() == (1, 1))
        refused = await asgi(app, body, never)  # one runs, one waits
        assert refused[0]["status"] == 503
        assert (b"retry-after", b"1") in refused[0]["headers"]
        leave[1].set()  # whoever leaves the line frees a place at once
        await asyncio.wait_for(second, 5)
        assert engine.load() == (1, 0)
        third = asyncio.create_task(asgi(app, {"prompt": "a", "max_tokens": 1}, never))
        await until(lambda: engine.load() == (1, 1))
        leave[0].set()
        await until(engine._running.stop.is_set)
        model.go.release(2)  # one for the token that was under way, one for the third client's only token
        await asyncio.wait_for(first, 5)
        assert (await asyncio.wait_for(third, 5))[0]["status"] == 200
        assert model.calls == 2
        engine.close()
        engine.join()

    asyncio.run(scene())


def test_closing_ends_what_runs_and_says_so():
    async def scene():
        model = Slow(build("lstm"))
        engine = Engine(model, CHAR)
        app = create_app(engine, "m")
        never = asyncio.Event()
        running = asyncio.create_task(asgi(app, {**ENDLESS, "stream": True}, never))
        await until(lambda: engine.load() == (1, 0))
        waiting = asyncio.create_task(asgi(app, ENDLESS, never))
        await until(lambda: engine.load() == (1, 1))
        engine.close()
        model.go.release(10)
        sent = await asyncio.wait_for(running, 5)
        assert b"it is being stopped" in sent[-2]["body"]
        assert (await asyncio.wait_for(waiting, 5))[0]["status"] == 503
        assert (await asgi(app, ENDLESS, never))[0]["status"] == 503
        engine.join()

    asyncio.run(scene())


def test_a_failure_is_one_answer_and_the_next_request_is_served(serve, caplog):
    class Failing(Slow):
        def __call__(self, ids, state):
            self.calls += 1
            if self.calls in (1, 2):
                raise MemoryError if self.calls == 1 else ValueError("secret")
            return self.model(ids, state)

    client = serve(Failing(build("lstm")))
    assert "memory" in ask(client, 500, prompt="a")["error"]["message"]
    chunk = events(client, prompt="a")[-1]
    assert chunk["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(chunk)
    assert "secret" in caplog.text
    assert ask(client, prompt="a")["choices"]
