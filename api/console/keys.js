// API keys: listed, made and revoked by administrators.

import { element, fill, row, when } from "./elements.js";
import { Refusal, ask, key, setKey } from "./service.js";

const at = (id) => document.getElementById(id);

export function begin() {
  at("make-key").addEventListener("submit", async (event) => {
    event.preventDefault();
    const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
    const body = {
      name: at("key-name").value.trim(),
      scopes: [...document.querySelectorAll("[name=scope]:checked")].map((box) => box.value),
      limits: { requests: number("key-requests"), tokens: number("key-tokens"), jobs: number("key-jobs") },
    };
    try {
      const made = await ask("v1/keys", { method: "POST", body });
      tell(`The key of ${made.name}, shown this once: `, made.key);
      if (!key()) setKey(made.key); // it may be the first, and without one nothing is answered any more
      event.target.reset();
      await keys();
    } catch (error) {
      tell(error.message, null);
    }
  });
}

function tell(words, plain) {
  const place = at("made-key");
  place.classList.toggle("bad", plain === null);
  place.replaceChildren(words, ...(plain === null ? [] : [element("code", {}, plain)]));
  place.hidden = false;
}

export async function keys() {
  try {
    const { data } = await ask("v1/keys");
    at("make-key").hidden = false;
    fill(at("key-rows"), data.map(keyRow), 6, "There are no keys: who reaches this service may use it. From the first key on, everybody needs one.");
  } catch (error) {
    if (!(error instanceof Refusal) || error.status !== 403) throw error;
    at("make-key").hidden = true;
    fill(at("key-rows"), [], 6, error.message);
  }
}

function keyRow(key) {
  const revoke = element("button", { type: "button", "aria-label": `Revoke the key ${key.name}` }, "Revoke");
  let sure = false;
  revoke.addEventListener("click", async () => {
    if (!sure) {
      sure = true;
      revoke.textContent = "Revoke for good?";
      return;
    }
    revoke.disabled = true;
    try {
      await ask(`v1/keys/${encodeURIComponent(key.id)}`, { method: "DELETE" });
    } catch (error) {
      tell(error.message, null);
    }
    await keys();
  });
  const limits = Object.entries(key.limits ?? {}).filter(([, most]) => most !== null);
  const words = { requests: "requests/min", tokens: "tokens/min", jobs: "at once" };
  return row(
    element("th", { scope: "row" }, key.name),
    element("code", {}, key.id),
    key.scopes.join(", "),
    limits.map(([what, most]) => `${most} ${words[what]}`).join(", ") || "none",
    when(key.created),
    revoke,
  );
}
