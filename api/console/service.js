// The service as this page sees it: requests with the key that was given, and what is wrong in one sentence.

const KEY = "rockchipllama.key";

export class Refusal extends Error {
  constructor(status, message, job) {
    super(message);
    this.status = status;
    this.job = job;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

export function address(path) {
  return new URL(path, document.baseURI).href;
}

// The response, once its head is there. Throws `Refusal` for what the service refuses, `TypeError` where it does not answer.
export async function request(path, { method = "GET", body, headers = {}, signal, keepalive } = {}) {
  const sent = { ...headers };
  if (key()) sent.authorization = `Bearer ${key()}`;
  if (body !== undefined) sent["content-type"] = "application/json";
  const reply = await fetch(address(path), {
    method,
    headers: sent,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    keepalive,
  });
  if (reply.ok) return reply;
  let message = `The service answered with the status ${reply.status}.`;
  try {
    message = (await reply.json()).error.message;
  } catch {
    // No JSON: something between this page and the service has answered.
  }
  throw new Refusal(reply.status, message, reply.headers.get("x-job-id"));
}

export async function ask(path, options) {
  return (await request(path, options)).json();
}

// The events of a stream, each {id, data}, as they come.
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const event = { id: null, data: null };
      for (const line of frame.split("\n")) {
        if (line.startsWith("id: ")) event.id = line.slice(4);
        else if (line.startsWith("data: ")) event.data = (event.data === null ? "" : event.data + "\n") + line.slice(6);
      }
      if (event.data !== null) yield event;
    }
  }
}
