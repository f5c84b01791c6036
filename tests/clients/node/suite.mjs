// The clients of Node.js against a running service: `node suite.mjs URL` writes a line of JSON for each client and scenario.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { embed, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { z } from "zod";

const url = process.argv[2];
const CALL = '<think>Hm.</think>Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>';
const THOUGHT = "<think>Hm, yes.</think>So it is.";
const TEXT = "Grüße, 世界! 👋🏽 And on.";
const LONG = "word ".repeat(600).trim();
const MANY = "too long ".repeat(4000);
const OBJECT = '{"city": "Köln", "people": 1087000}';
const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, people: { type: "integer" } },
  required: ["city", "people"],
  additionalProperties: false,
};
const PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const user = (content) => [{ role: "user", content }];
const city = z.object({ city: z.string(), people: z.number().int() });

async function refused(promise, pattern, status) {
  await assert.rejects(promise, (error) => {
    const told = error.status ?? error.status_code ?? error.statusCode ?? error.lastError?.statusCode;
    if (status) assert.equal(told, status);
    assert.match(`${error.message} ${error.error ?? ""}`, pattern);
    return true;
  });
}

// The job of a stream that was left has ended as cancelled, which no client can see: the service is asked.
async function ended(before) {
  for (let tries = 0; tries < 200; tries++) {
    const { data } = await (await fetch(`${url}/v1/jobs?state=cancelled`)).json();
    if (data.length > before) return;
    await new Promise((done) => setTimeout(done, 100));
  }
  assert.fail("the job was not cancelled");
}
const cancelled = async () => (await (await fetch(`${url}/v1/jobs?state=cancelled`)).json()).data.length;

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const tools = [{ type: "function", function: { name: "weather", parameters: PARAMETERS } }];

const OPENAI = {
  async chat() {
    const reply = await openai.chat.completions.create({ model: "echo", messages: user(TEXT) });
    assert.equal(reply.choices[0].message.content, TEXT);
    assert.ok(reply.usage.total_tokens > 0 && reply._request_id);
  },
  async stream() {
    const stream = openai.chat.completions.stream({ model: "echo", messages: user(TEXT), stream_options: { include_usage: true } });
    let said = "";
    stream.on("content", (delta) => (said += delta));
    const reply = await stream.finalChatCompletion();
    assert.equal(said, TEXT);
    assert.ok(reply.usage.completion_tokens > 0);
  },
  async tools() {
    const runner = openai.chat.completions.runTools({
      model: "caller",
      messages: user(CALL),
      tools: [{ type: "function", function: { name: "weather", parameters: PARAMETERS, parse: JSON.parse, function: ({ city }) => `Rain in ${city}.` } }],
    }, { maxChatCompletions: 2 });
    const calls = [];
    runner.on("functionToolCall", (call) => calls.push(call.arguments));
    await runner.done();
    assert.deepEqual(calls.map(JSON.parse), [{ city: "Köln" }]);
  },
  async schema() {
    const reply = await openai.chat.completions.parse({
      model: "echo",
      messages: user(OBJECT),
      response_format: { type: "json_schema", json_schema: { name: "city", schema: SCHEMA, strict: true } },
    });
    city.parse(reply.choices[0].message.parsed);
  },
  async thinking() {
    const reply = await openai.chat.completions.create({ model: "caller", messages: user(THOUGHT) });
    assert.equal(reply.choices[0].message.reasoning_content, "Hm, yes.");
    assert.equal(reply.choices[0].message.content, "So it is.");
  },
  async embed() {
    const reply = await openai.embeddings.create({ model: "echo", input: ["one", "two"] }); // base64 by itself
    assert.equal(reply.data.length, 2);
    assert.ok(Math.abs(Math.hypot(...reply.data[0].embedding) - 1) < 1e-3);
  },
  async cancel() {
    const before = await cancelled();
    const stream = await openai.chat.completions.create({ model: "slow", messages: user(LONG), stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    await ended(before);
  },
  async errors() {
    await refused(openai.chat.completions.create({ model: "nobody", messages: user("x") }), /does not exist/, 404);
    await refused(openai.chat.completions.create({ model: "echo", messages: user(MANY) }), /context/, 400);
  },
  async long() {
    const reply = await openai.chat.completions.create({ model: "echo", messages: user(LONG) });
    assert.equal(reply.choices[0].message.content, LONG);
  },
};

const RESPONSES = {
  async chat() {
    const reply = await openai.responses.create({ model: "echo", input: TEXT });
    assert.equal(reply.output_text, TEXT);
    const then = await openai.responses.create({ model: "echo", input: "And then?", previous_response_id: reply.id });
    assert.equal(then.output_text, "And then?");
  },
  async stream() {
    const stream = openai.responses.stream({ model: "echo", input: TEXT });
    const reply = await stream.finalResponse();
    assert.equal(reply.output_text, TEXT);
  },
  async tools() {
    const reply = await openai.responses.create({ model: "caller", input: CALL, tools: [{ type: "function", name: "weather", parameters: PARAMETERS, strict: false }] });
    const call = reply.output.find((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Köln" });
    const output = [{ type: "function_call_output", call_id: call.call_id, output: "Rain." }];
    const then = await openai.responses.create({ model: "caller", input: output, previous_response_id: reply.id, tools: [] });
    assert.match(then.output_text, /Rain\./);
  },
  async schema() {
    const reply = await openai.responses.parse({ model: "echo", input: OBJECT, text: { format: { type: "json_schema", name: "city", schema: SCHEMA, strict: true } } });
    city.parse(reply.output_parsed);
  },
  async thinking() {
    const reply = await openai.responses.create({ model: "caller", input: THOUGHT });
    assert.deepEqual(reply.output.map((item) => item.type), ["reasoning", "message"]);
    assert.equal(reply.output_text, "So it is.");
  },
  async cancel() {
    const begun = await openai.responses.create({ model: "slow", input: LONG, background: true });
    const over = await openai.responses.cancel(begun.id);
    assert.ok(["cancelled", "in_progress", "queued"].includes(over.status));
    for (let tries = 0; tries < 100 && (await openai.responses.retrieve(begun.id)).status !== "cancelled"; tries++) await new Promise((done) => setTimeout(done, 100));
    assert.equal((await openai.responses.retrieve(begun.id)).status, "cancelled");
  },
  async errors() {
    await refused(openai.responses.create({ model: "nobody", input: "x" }), /does not exist/, 404);
  },
  async long() {
    assert.equal((await openai.responses.create({ model: "echo", input: LONG })).output_text, LONG);
  },
};

const ollama = new Ollama({ host: url });
const OLLAMA = {
  async chat() {
    const reply = await ollama.chat({ model: "echo", messages: user(TEXT) });
    assert.equal(reply.message.content, TEXT);
    assert.ok(reply.total_duration >= reply.eval_duration && reply.eval_count > 0);
  },
  async stream() {
    let said = "";
    for await (const part of await ollama.generate({ model: "echo", prompt: TEXT, stream: true })) said += part.response;
    assert.equal(said, TEXT);
  },
  async tools() {
    const reply = await ollama.chat({ model: "caller", messages: user(CALL), tools });
    const { name, arguments: given } = reply.message.tool_calls[0].function;
    assert.deepEqual([name, given], ["weather", { city: "Köln" }]);
  },
  async schema() {
    const reply = await ollama.chat({ model: "echo", messages: user(OBJECT), format: SCHEMA });
    city.parse(JSON.parse(reply.message.content));
  },
  async thinking() {
    const reply = await ollama.chat({ model: "caller", messages: user(THOUGHT), think: true });
    assert.deepEqual([reply.message.thinking, reply.message.content], ["Hm, yes.", "So it is."]);
  },
  async embed() {
    const reply = await ollama.embed({ model: "echo", input: ["one", "two"] });
    assert.equal(reply.embeddings.length, 2);
  },
  async cancel() {
    const before = await cancelled();
    const stream = await ollama.chat({ model: "slow", messages: user(LONG), stream: true });
    await assert.rejects(async () => {
      for await (const _ of stream) stream.abort();
    }, /abort/i);
    await ended(before);
  },
  async errors() {
    await refused(ollama.chat({ model: "nobody", messages: user("x") }), /not found/, 404);
  },
  async long() {
    assert.equal((await ollama.chat({ model: "echo", messages: user(LONG) })).message.content, LONG);
  },
};

const anthropic = new Anthropic({ baseURL: url, apiKey: "unused", maxRetries: 0 });
const asked = { max_tokens: 4000 };
const textOf = (reply) => reply.content.filter((part) => part.type === "text").map((part) => part.text).join("");
const ANTHROPIC = {
  async chat() {
    assert.equal(textOf(await anthropic.messages.create({ model: "echo", ...asked, messages: user(TEXT) })), TEXT);
  },
  async stream() {
    const stream = anthropic.messages.stream({ model: "echo", ...asked, messages: user(TEXT) });
    assert.equal(await stream.finalText(), TEXT);
  },
  async tools() {
    const reply = await anthropic.messages.create({ model: "caller", ...asked, messages: user(CALL), tools: [{ name: "weather", input_schema: PARAMETERS }] });
    assert.equal(reply.stop_reason, "tool_use");
    assert.deepEqual(reply.content.find((part) => part.type === "tool_use").input, { city: "Köln" });
  },
  async schema() {
    const reply = await anthropic.messages.create({ model: "echo", ...asked, messages: user(OBJECT), output_config: { format: { type: "json_schema", schema: SCHEMA } } });
    city.parse(JSON.parse(textOf(reply)));
  },
  async thinking() {
    const reply = await anthropic.messages.create({ model: "caller", ...asked, messages: user(THOUGHT), thinking: { type: "enabled", budget_tokens: 1024 } });
    assert.deepEqual(reply.content.map((part) => part.type), ["thinking", "text"]);
  },
  async cancel() {
    const before = await cancelled();
    const stream = anthropic.messages.stream({ model: "slow", ...asked, messages: user(LONG) });
    await assert.rejects(async () => {
      for await (const event of stream) if (event.type === "content_block_delta") stream.abort();
    });
    await ended(before);
  },
  async errors() {
    await refused(anthropic.messages.create({ model: "nobody", ...asked, messages: user("x") }), /does not exist/, 404);
  },
  async long() {
    assert.equal(textOf(await anthropic.messages.create({ model: "echo", ...asked, messages: user(LONG) })), LONG);
  },
};

// The Vercel AI SDK speaks each dialect through a provider; what is asked of it is the same.
function sdk(model, { embedding, providerOptions, objects = "echo" } = {}) {
  const weather = tool({ description: "The weather.", inputSchema: z.object({ city: z.string() }), execute: async ({ city }) => `Rain in ${city}.` });
  const once = { maxRetries: 0, maxOutputTokens: 4000 };
  return {
    async chat() {
      const reply = await generateText({ ...once, model: model("echo"), prompt: TEXT });
      assert.equal(reply.text, TEXT);
      assert.ok(reply.usage.outputTokens > 0);
    },
    async stream() {
      let said = "";
      for await (const part of streamText({ ...once, model: model("echo"), prompt: TEXT }).textStream) said += part;
      assert.equal(said, TEXT);
    },
    async tools() {
      const reply = await generateText({ ...once, model: model("caller"), prompt: CALL, tools: { weather }, stopWhen: stepCountIs(2) });
      assert.deepEqual(reply.steps[0].toolCalls.map((call) => call.input), [{ city: "Köln" }]);
      assert.equal(reply.steps[0].toolResults[0].output, "Rain in Köln.");
      assert.match(reply.text, /Rain in Köln\./);
    },
    async schema() {
      const { object } = await generateObject({ ...once, model: model(objects), prompt: OBJECT, schema: city });
      city.parse(object);
    },
    async thinking() {
      const reply = await generateText({ ...once, model: model("caller"), prompt: THOUGHT, providerOptions });
      assert.equal(reply.reasoningText, "Hm, yes.");
      assert.equal(reply.text, "So it is.");
    },
    ...(embedding && {
      async embed() {
        const reply = await embed({ model: embedding("echo"), value: "one", maxRetries: 0 });
        assert.ok(reply.embedding.length > 0);
      },
    }),
    async cancel() {
      const before = await cancelled();
      const abort = new AbortController();
      const { textStream } = streamText({ ...once, model: model("slow"), prompt: LONG, abortSignal: abort.signal });
      for await (const _ of textStream) abort.abort();
      await ended(before);
    },
    async errors() {
      await refused(generateText({ ...once, model: model("nobody"), prompt: "x" }), /does not exist/, 404);
    },
    async long() {
      assert.equal((await generateText({ ...once, model: model("echo"), prompt: LONG })).text, LONG);
    },
  };
}

const aiOpenAI = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const compatible = createOpenAICompatible({ name: "rockchipllama", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const aiAnthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey: "unused" });

const CLIENTS = {
  "openai-node": ["openai", OPENAI],
  "openai-node, Responses": ["openai", RESPONSES],
  "ollama-js": ["ollama", OLLAMA],
  "anthropic-sdk-typescript": ["@anthropic-ai/sdk", ANTHROPIC],
  "AI SDK, @ai-sdk/openai": ["@ai-sdk/openai", sdk((name) => aiOpenAI(name), { embedding: (name) => aiOpenAI.textEmbeddingModel(name), providerOptions: { openai: { reasoningSummary: "auto", forceReasoning: true } } })],
  "AI SDK, @ai-sdk/openai-compatible": ["@ai-sdk/openai-compatible", sdk((name) => compatible(name), { embedding: (name) => compatible.textEmbeddingModel(name) })],
  "AI SDK, @ai-sdk/anthropic": ["@ai-sdk/anthropic", sdk((name) => aiAnthropic(name), { objects: "caller", providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } } })],
};

const versions = JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies;
for (const [client, [library, scenarios]] of Object.entries(CLIENTS)) {
  for (const [scenario, run] of Object.entries(scenarios)) {
    let fault = null;
    try {
      await run();
    } catch (error) {
      fault = `${error.stack ?? error}`.slice(0, 1500);
    }
    console.log(JSON.stringify({ client, version: versions[library], scenario, fault }));
  }
}
process.exit(0);
