// The official openai package of npm against a server: node openai_client.mjs URL QUESTION, prints what it got as JSON.
import OpenAI from "openai";

const [url, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const request = {
  model: "puzzles",
  messages: [{ role: "user", content: question }],
  seed: 5,
  temperature: 1,
  top_p: 0.9,
  max_tokens: 40,
};

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const one = await client.chat.completions.create({ ...request, lace: { expose: "threads" } });
const four = await client.chat.completions.create({ ...request, n: 4 });

const streamed = {};
let usage = null;
const stream = await client.chat.completions.create({
  ...request,
  n: 4,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  for (const { index, delta } of chunk.choices) streamed[index] = (streamed[index] ?? "") + (delta.content ?? "");
  usage = chunk.usage ?? usage;
}

// Its helper that puts a stream together, and refuses chunks that do not add up.
const helper = await client.chat.completions.stream(request).finalContent();

const { messages, ...rest } = request;
const completions = await client.completions.create({ ...rest, prompt: question, n: 4 });

let refused = null;
try {
  await client.chat.completions.create({ ...request, model: "other" });
} catch (error) {
  refused = { status: error.status, code: error.code, type: error.constructor.name };
}

// Leaves in the middle of an answer.
const left = await client.chat.completions.create({ ...request, n: 4, max_tokens: 100, stream: true });
for await (const _ of left) break;

console.log(
  JSON.stringify({
    models,
    one: one.choices[0].message.content,
    lace: one.lace,
    four: four.choices.map((choice) => choice.message.content),
    streamed,
    usage,
    helper,
    completions: completions.choices.map((choice) => choice.text),
    refused,
  }),
);
