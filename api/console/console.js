// The page: which view is shown, what it asks for, and the key it asks with.

import * as chat from "./chat.js";
import * as keyView from "./keys.js";
import { batches, failures, live } from "./live.js";
import { Refusal, address, ask, key, setKey } from "./service.js";

const at = (id) => document.getElementById(id);
const VIEWS = { chat: chat.offer, live, batches, failures, keys: keyView.keys, connect };
const PAUSE = { live: 2000, batches: 3000, failures: 5000 }; // milliseconds between two looks

let timer = null;
let asking = false;

function view() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "chat";
}

function turn() {
  for (const name of Object.keys(VIEWS)) at(name).hidden = name !== view();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  look();
}

async function look() {
  clearTimeout(timer);
  const shown = view();
  try {
    await VIEWS[shown]();
    notice(null);
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) askForKey(error.message);
    notice(error instanceof Refusal ? error.message : "The service does not answer. It is asked again until it does.");
  }
  const pause = PAUSE[shown] ?? (at("notice").hidden ? null : 3000);
  if (pause !== null && shown === view() && !document.hidden) timer = setTimeout(look, pause);
}

function notice(words) {
  at("notice").hidden = words === null;
  at("notice").classList.toggle("bad", words !== null);
  if (words !== null && at("notice").textContent !== words) at("notice").textContent = words;
}

async function connect() {
  for (const place of document.querySelectorAll("[data-address]")) {
    place.textContent = address(place.dataset.address).replace(/\/$/, "");
  }
  const [model] = await chat.offer();
  const body = JSON.stringify({ model: model ?? "MODEL", messages: [{ role: "user", content: "Why is the sky blue?" }] });
  const shown = key() ? " -H 'Authorization: Bearer YOUR-KEY'" : "";
  at("curl").textContent = `curl ${address("v1/chat/completions")} -H 'Content-Type: application/json'${shown} \\\n  -d '${body}'`;
}

function askForKey(why) {
  if (asking) return;
  asking = true;
  at("key-why").textContent = `${why} It is kept in this tab until you close it.`;
  at("key").value = key();
  at("key-dialog").showModal();
}

at("key-dialog").addEventListener("close", () => {
  asking = false;
  if (at("key-dialog").returnValue === "use") {
    setKey(at("key").value.trim());
    look();
  }
  at("key").value = "";
});
at("show-key").addEventListener("click", () => askForKey("The key that this page shows to the service."));

async function needsKey() {
  try {
    const health = await fetch(address("v1/health"));
    at("show-key").hidden = !(await health.json()).needs_key && !key();
  } catch {
    // The view says that nothing answers.
  }
}

chat.begin();
keyView.begin();
addEventListener("hashchange", turn);
document.addEventListener("visibilitychange", () => document.hidden || look());
needsKey();
turn();
