// What changes by itself: boards, queues, jobs, batches, failures. Each view asks anew while it is looked at.

import { element, fill, row, span, when } from "./elements.js";
import { Refusal, ask } from "./service.js";

const at = (id) => document.getElementById(id);

export async function live() {
  const [boards, queues, jobs] = await Promise.all([ask("v1/boards"), ask("v1/queue"), allowed(ask("v1/jobs?state=active&limit=50"))]);
  fill(at("boards"), boards.data.map(boardRow), 7, "No board is running.");
  fill(at("queues"), queues.data.map(queueRow), 8, "No model is known.");
  if (jobs.refused) fill(at("jobs"), [], 7, jobs.refused);
  else fill(at("jobs"), jobs.data.map(jobRow), 7, "Nothing runs or waits.");
}

// What an administrator may see; for others, the sentence that says so.
async function allowed(asked) {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof Refusal && error.status === 403) return { refused: error.message };
    throw error;
  }
}

function boardRow(board) {
  const memory = board.memory;
  const used = memory ? memory.total - memory.available : 0;
  const models = board.models.map((model) => `${model.id} (${model.state})`).join(", ");
  return row(
    element("th", { scope: "row" }, board.id, board.drained ? " (drained)" : ""),
    board.soc ?? "no NPU",
    board.npu_load ? cell(board.npu_load.map((load, core) => gauge(load, 100, `${load} %`, `NPU core ${core}`))) : "–",
    board.temperature === null ? "–" : `${board.temperature} °C${board.hot ? " (hot)" : ""}`,
    memory ? cell([gauge(used, memory.total, `${(used / 2 ** 30).toFixed(1)} of ${(memory.total / 2 ** 30).toFixed(1)} GiB`, "Memory in use")]) : "–",
    element("td", { class: "long" }, models || "–"),
    board.version,
  );
}

function cell(children) {
  return element("td", {}, ...children);
}

function gauge(value, most, words, name) {
  return element("span", {}, element("meter", { min: 0, max: most, value, "aria-label": name }), words, " ");
}

function queueRow(queue) {
  const speeds = queue.boards.map((board) => board.decode_tps).filter((speed) => speed);
  return row(
    element("th", { scope: "row" }, queue.id),
    queue.state,
    queue.running,
    queue.lanes.interactive,
    queue.lanes.background,
    queue.lanes.batch,
    span(queue.estimated_wait),
    speeds.length ? speeds.map((speed) => speed.toFixed(1)).join(" + ") : "–",
  );
}

function jobRow(job) {
  const end = element("button", { type: "button", "aria-label": `Cancel job ${job.id}` }, "Cancel");
  end.addEventListener("click", async () => {
    end.disabled = true;
    await ask(`v1/jobs/${job.id}/cancel`, { method: "POST" }).catch(() => {});
    await live();
  });
  const state = job.phase ?? (job.position ? `waits, place ${job.position}` : job.state);
  return row(element("code", {}, job.id), job.model, job.lane, state, job.board, span(Date.now() / 1000 - job.created_at), end);
}

export async function batches() {
  const { data } = await ask("v1/batches?limit=50");
  fill(at("batch-rows"), data.map(batchRow), 6, "There are no batches. docs/batch.md shows how to begin one.");
}

function batchRow(batch) {
  const { total, completed, failed } = batch.request_counts;
  const bar = element("progress", { max: total || 1, value: completed + failed, "aria-label": `Progress of ${batch.id}` });
  return row(element("code", {}, batch.id), batch.endpoint, batch.status, element("span", {}, bar, `${completed + failed} of ${total}`), failed, when(batch.created_at));
}

export async function failures() {
  const jobs = await allowed(ask("v1/jobs?state=failed&limit=50"));
  if (jobs.refused) return fill(at("failure-rows"), [], 6, jobs.refused);
  fill(
    at("failure-rows"),
    jobs.data.map((job) => row(when(job.ended_at), element("code", {}, job.id), job.model, job.board, job.attempts, element("td", { class: "long" }, job.error?.message ?? "–"))),
    6,
    "No job has failed lately.",
  );
}
