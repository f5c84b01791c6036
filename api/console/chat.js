// The conversation: sent whole with each question, streamed, gone on with where a connection broke, stopped by its reader.

import { element, span } from "./elements.js";
import { rendered } from "./markdown.js";
import { Refusal, ask, events, request } from "./service.js";

const KEPT = "rockchipllama.talk";
const GRACE = 30; // seconds for which an answer goes on while its connection is broken
const TRIES = 8;

const at = (id) => document.getElementById(id);
const talk = at("talk");

let messages = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
let running = null; // {job, stopped, abort, leave}

export function begin() {
  for (const message of messages) show(message);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  at("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) stop();
  });
  at("new-chat").addEventListener("click", () => {
    if (running) stop();
    messages = [];
    keep();
    talk.replaceChildren();
    at("text").focus();
  });
  // What nobody will read is not worth its time on the board.
  addEventListener("pagehide", () => running && cancel(running));
}

export async function offer() {
  const { data } = await ask("v1/models");
  const chats = data.filter((model) => model.capabilities.includes("chat"));
  const select = at("model");
  const before = select.value;
  // The default model of the service is the one it would choose itself; a loaded one answers soonest, an echo says nothing new.
  chats.sort((one, other) => rank(one) - rank(other));
  select.replaceChildren(...chats.map((model) => element("option", { value: model.id }, model.id)));
  if (chats.some((model) => model.id === before)) select.value = before;
  return chats.map((model) => model.id);
}

function rank(model) {
  return (model.meta.loaded ? 0 : 1) + (model.meta.engine === "echo" ? 2 : 0);
}

function keep() {
  sessionStorage.setItem(KEPT, JSON.stringify(messages));
}

function show(message) {
  const turn = element("article", { class: `turn ${message.role}`, "aria-label": message.role === "user" ? "You" : "Answer" });
  if (message.role === "user") {
    turn.append(message.content);
  } else {
    if (message.thought) turn.append(folded(message.thought));
    turn.append(element("div", {}, ...rendered(message.content)));
    if (message.facts) turn.append(element("p", { class: "facts" }, message.facts));
  }
  talk.append(turn);
  return turn;
}

function folded(thought) {
  return element("details", {}, element("summary", {}, "Thought"), element("div", {}, thought));
}

function asked() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const system = at("system").value.trim();
  const body = {
    model: at("model").value,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...messages.map(({ role, content }) => ({ role, content })),
    ],
    stream: true,
    stream_options: { include_usage: true },
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    seed: number("seed"),
  };
  const thinking = at("thinking").value;
  if (thinking) body.chat_template_kwargs = { enable_thinking: thinking === "on" };
  return body;
}

async function send() {
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  const mine = messages; // "New chat" begins another
  messages.push({ role: "user", content: text });
  keep();
  show(messages.at(-1));
  // Busy: a screen reader reads the answer when it is whole, and not anew with each frame.
  const turn = element("article", { class: "turn assistant busy", "aria-label": "Answer", "aria-busy": "true" });
  talk.append(turn);
  turn.scrollIntoView({ block: "end" });
  at("send").hidden = true;
  at("stop").hidden = false;
  at("said").textContent = "The model answers.";
  const answer = { role: "assistant", content: "", thought: "", facts: "" };
  running = { job: null, stopped: false, abort: new AbortController() };
  const left = new Promise((_, reject) => (running.leave = () => reject(new Error("Stopped."))));
  try {
    await Promise.race([receive(answer, turn, running), left]);
  } catch (error) {
    if (!running.stopped) answer.error = error.message;
  }
  if (running.stopped) answer.facts = "Stopped.";
  running = null;
  turn.classList.remove("busy");
  draw(turn, answer);
  turn.removeAttribute("aria-busy");
  if (mine === messages) {
    if (answer.content) messages.push(answer);
    else if (answer.error) messages.pop(), (at("text").value ||= text); // so that it can be sent again
    keep();
  }
  at("said").textContent = answer.error ?? answer.facts;
  at("send").hidden = false;
  at("stop").hidden = true;
  at("text").focus();
}

// The whole answer, over as many connections as it takes.
async function receive(answer, turn, run) {
  const begun = performance.now();
  let first = null;
  let last = null;
  let failures = 0;
  const options = { signal: run.abort.signal };
  let reply = await request("v1/chat/completions", { ...options, method: "POST", body: asked(), headers: { "x-stream-grace": `${GRACE}s` } });
  run.job = reply.headers.get("x-job-id");
  if (run.stopped) return end(run);
  for (;;) {
    try {
      for await (const event of events(reply)) {
        failures = 0;
        last = event.id ?? last;
        if (event.data === "[DONE]") return;
        const chunk = JSON.parse(event.data);
        if (chunk.error) throw new Refusal(0, chunk.error.message);
        const delta = chunk.choices?.[0]?.delta ?? {};
        if (delta.content || delta.reasoning_content) first ??= performance.now() - begun;
        answer.content += delta.content ?? "";
        answer.thought += delta.reasoning_content ?? "";
        if (chunk.usage) answer.facts = facts(chunk, first);
        soon(turn, answer);
      }
      if (last === null) throw new TypeError("The connection ended before the answer began.");
    } catch (error) {
      // A refusal is the service's last word; all else is a connection that broke.
      if (error instanceof Refusal || run.stopped || !run.job || ++failures > TRIES) throw error;
    }
    for (;;) {
      try {
        await new Promise((done) => setTimeout(done, Math.min(4000, 250 * 2 ** failures)));
        const headers = last ? { "last-event-id": last } : {};
        reply = await request(`v1/jobs/${run.job}/events`, { ...options, headers });
        break;
      } catch (error) {
        if (run.stopped || ++failures > TRIES || (error instanceof Refusal && error.status < 500)) throw error;
      }
    }
  }
}

function facts({ usage, timings }, first) {
  const words = [`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`];
  if (first !== null) words.push(`first after ${span(first / 1000)}`);
  if (timings?.predicted_per_second) words.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  if (usage.prompt_tokens_details?.cached_tokens) words.push(`${usage.prompt_tokens_details.cached_tokens} cached`);
  return words.join(" · ");
}

let due = null;

// Drawn with the next frame: a fast model says more than a screen shows.
function soon(turn, answer) {
  due ??= requestAnimationFrame(() => {
    due = null;
    draw(turn, answer);
  });
}

function draw(turn, answer) {
  const follows = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  const open = turn.querySelector("details")?.open;
  const parts = [];
  if (answer.thought) {
    const thought = folded(answer.thought);
    thought.open = open ?? false;
    if (!answer.content && turn.classList.contains("busy")) thought.querySelector("summary").textContent = "Thinking…";
    parts.push(thought);
  }
  parts.push(element("div", {}, ...rendered(answer.content)));
  if (answer.facts) parts.push(element("p", { class: "facts" }, answer.facts));
  if (answer.error) parts.push(element("p", { class: "bad" }, answer.error));
  turn.replaceChildren(...parts);
  if (follows) talk.scrollTop = talk.scrollHeight;
}

function stop() {
  if (!running) return;
  running.stopped = true;
  // While its job has no name yet there is none to cancel, and an answer that has just begun would go on: `receive` ends it then.
  if (running.job) end(running);
  running.leave();
}

function end(run) {
  cancel(run);
  run.abort.abort();
}

function cancel(run) {
  // Leaving alone would let the answer go on for its grace.
  if (run.job) request(`v1/jobs/${run.job}/cancel`, { method: "POST", keepalive: true }).catch(() => {});
}
