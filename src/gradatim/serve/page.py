"""The page at ``/``: a prompt box that streams a completion. Nothing comes from elsewhere; the policy forbids it."""

from __future__ import annotations

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
"""Content-Security-Policy: the page's own style and script, this server's API, and nothing else."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>gradatim</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6675; --paper: #fbfaf7; --card: #ffffff; --line: #e2ded4; --mark: #a34a25; --on-mark: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #a5a8ae; --paper: #15181d; --card: #1d2127; --line: #343a43; --mark: #e59b76; --on-mark: #15181d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 Georgia, "Iowan Old Style", "Times New Roman", serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .3rem; }
p.lead { color: var(--soft); margin: 0 0 1.4rem; }
label { font: 14px/1.5 system-ui, sans-serif; color: var(--soft); }
textarea, input { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .7rem; }
textarea { display: block; width: 100%; min-height: 7rem; margin-top: .2rem; resize: vertical; }
.row { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; align-items: end; margin: .9rem 0 1.4rem; }
.row label { display: grid; gap: .2rem; } .row input { width: 7rem; font: 14px/1.5 system-ui, sans-serif; } .row input[type=password] { width: 11rem; }
button { font: 600 15px/1.5 system-ui, sans-serif; color: var(--on-mark); background: var(--mark); border: 0; border-radius: 8px; padding: .5rem 1.3rem; cursor: pointer; }
button.plain { color: var(--ink); background: transparent; border: 1px solid var(--line); } button:disabled { opacity: .45; cursor: default; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
#answer { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-height: 6rem; }
#answer .prompt { color: var(--soft); } #state { color: var(--soft); font: 14px/1.5 system-ui, sans-serif; min-height: 1.5em; margin-top: .6rem; overflow-wrap: anywhere; }
#state.wrong { color: var(--mark); }
</style>
</head>
<body>
<main>
<h1>gradatim</h1>
<p class="lead" id="model">One model, one prompt, one completion at a time.</p>
<form id="form">
<label>Prompt<textarea id="prompt" autofocus spellcheck="false" placeholder="Empty: the start of a document"></textarea></label>
<div class="row">
<label>Most tokens<input id="max_tokens" type="number" min="1" max="4096" value="128"></label>
<label>Temperature<input id="temperature" type="number" min="0" step="any" value="0.8"></label>
<label>Top p<input id="top_p" type="number" min="0" max="1" step="any" value="1"></label>
<label>Seed<input id="seed" type="number" step="1" placeholder="any"></label>
<label>API key<input id="key" type="password" autocomplete="off" placeholder="if there is one"></label>
<button id="go">Complete</button>
<button id="stop" type="button" class="plain" disabled>Stop</button>
</div>
</form>
<div id="answer" aria-label="Completion"></div>
<p id="state" role="status"></p>
</main>
<script>
"use strict";
const at = id => document.getElementById(id);
let running = null;
function say(text, wrong) { at("state").textContent = text; at("state").classList.toggle("wrong", !!wrong); }
function headers() {
  const key = at("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}
async function name() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (answer.ok) at("model").textContent = "The model is " + (await answer.json()).data[0].id + ".";
}
async function complete() {
  const body = { prompt: at("prompt").value, stream: true, stream_options: { include_usage: true } };
  for (const field of ["max_tokens", "temperature", "top_p", "seed"])
    if (at(field).value !== "") body[field] = Number(at(field).value);
  const written = document.createElement("span"), prompt = document.createElement("span");
  prompt.className = "prompt"; prompt.textContent = body.prompt;
  at("answer").replaceChildren(prompt, written);
  const begun = performance.now();
  const answer = await fetch("v1/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", reason = "", usage = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\\n\\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") continue;
      const piece = JSON.parse(event.slice(6));
      if (piece.error) throw new Error(piece.error.message);
      for (const choice of piece.choices) { written.append(choice.text); reason = choice.finish_reason || reason; }
      usage = piece.usage || usage;
    }
  }
  const seconds = (performance.now() - begun) / 1000;
  say((reason === "length" ? "Cut off at the most tokens" : "Ended by the model") +
      (usage ? ": " + usage.completion_tokens + " tokens in " + seconds.toFixed(2) + " s" : "") +
      (usage && usage.prompt_tokens_dropped ? "; the first " + usage.prompt_tokens_dropped + " tokens of the prompt were not read" : "") + ".");
}
at("form").addEventListener("submit", async event => {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  at("go").disabled = true; at("stop").disabled = false; say("Writing …");
  try { await complete(); name(); }
  catch (error) { error.name === "AbortError" ? say("Stopped.") : say(error.message, true); }
  finally { running = null; at("go").disabled = false; at("stop").disabled = true; }
});
at("stop").addEventListener("click", () => running && running.abort());
at("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
name().catch(() => {});
</script>
</body>
</html>
"""
"""The page. Texts from people and model are only ever set as text, never as HTML."""
