// The official OpenAI client against a server, whichever: what is asserted holds for any model.
//
//   PERIGEE_BASE_URL       http://127.0.0.1:8080/v1
//   PERIGEE_API_KEY        sent as the key ("unused")
//   PERIGEE_FAKE_BACKEND   "1": the server counts from one to eight; exact texts are checked, and what it does on demand
//
// Prints one line for each check; exits with 1 after the first that fails.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const baseURL = process.env.PERIGEE_BASE_URL;
assert.ok(baseURL, 'PERIGEE_BASE_URL is not set');
const fake = process.env.PERIGEE_FAKE_BACKEND === '1';
const client = new OpenAI({baseURL, apiKey: process.env.PERIGEE_API_KEY ?? 'unused', maxRetries: 0, timeout: 60_000});
const messages = [{role: 'system', content: 'You are brief.'}, {role: 'user', content: 'Say something.'}];

const checkUsage = (usage) => {
  assert.ok(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  assert.ok(usage.prompt_tokens_details.cached_tokens >= 0 && usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens);
};

const rejects = async (promise, status, check = () => {}) => {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof OpenAI.APIError, String(error));
    assert.equal(error.status, status, error.message);
    check(error);
    return;
  }
  assert.fail(`no error, but ${status} is expected`);
};

let model;

const checks = {
  'models are listed and found': async () => {
    const list = await client.models.list();
    assert.equal(list.data.length, 1);
    model = list.data[0].id;
    assert.equal((await client.models.retrieve(model)).id, model);
    await rejects(client.models.retrieve('no-such-model'), 404, (error) => assert.equal(error.code, 'model_not_found'));
  },

  'a chat completion': async () => {
    const answer = await client.chat.completions.create({model, messages, max_tokens: 8, temperature: 0});
    assert.equal(answer.object, 'chat.completion');
    assert.equal(answer.choices.length, 1);
    assert.equal(answer.choices[0].message.role, 'assistant');
    assert.equal(typeof answer.choices[0].message.content, 'string');
    assert.ok(['stop', 'length'].includes(answer.choices[0].finish_reason));
    checkUsage(answer.usage);
    assert.ok(answer._request_id);
    if (fake) assert.equal(answer.choices[0].message.content, 'one two three four five six seven eight');
  },

  'content as parts': async () => {
    const parts = [{role: 'user', content: [{type: 'text', text: 'Say'}, {type: 'text', text: 'something.'}]}];
    const answer = await client.chat.completions.create({model, messages: parts, max_completion_tokens: 2});
    assert.equal(answer.choices.length, 1);
  },

  'a streamed chat completion is the whole one in pieces': async () => {
    const request = {model, messages, max_tokens: 8, temperature: 0};
    const whole = await client.chat.completions.create(request);
    const stream = await client.chat.completions.create({...request, stream: true, stream_options: {include_usage: true}});
    let text = '', role, reason, usage, chunks = 0;
    for await (const chunk of stream) {
      assert.equal(chunk.object, 'chat.completion.chunk');
      if (chunk.usage) usage = chunk.usage;
      if (chunk.choices.length === 0) continue;
      assert.equal(reason, undefined);  // Nothing comes after the end.
      ++chunks;
      role ??= chunk.choices[0].delta.role;
      text += chunk.choices[0].delta.content ?? '';
      reason = chunk.choices[0].finish_reason ?? undefined;
    }
    assert.equal(role, 'assistant');
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(reason, whole.choices[0].finish_reason);
    assert.ok(chunks > 1);
    checkUsage(usage);
  },

  'the stream helper': async () => {
    const runner = client.beta.chat.completions.stream({model, messages, max_tokens: 8, temperature: 0});
    const final = await runner.finalChatCompletion();
    assert.equal(typeof final.choices[0].message.content, 'string');
  },

  'completions of texts, lists and tokens': async () => {
    const one = await client.completions.create({model, prompt: 'Once upon a time', max_tokens: 4, temperature: 0});
    assert.equal(one.object, 'text_completion');
    assert.equal(typeof one.choices[0].text, 'string');
    checkUsage(one.usage);
    const several = await client.completions.create({model, prompt: ['Once', 'upon'], n: 2, max_tokens: 2, seed: 7});
    assert.deepEqual(several.choices.map((c) => c.index), [0, 1, 2, 3]);
    const tokens = await client.completions.create({model, prompt: [[5, 6, 7]], max_tokens: 2});
    assert.equal(tokens.usage.prompt_tokens, 3);
    if (fake) assert.equal(one.choices[0].text, 'one two three four');
  },

  'streamed completions of two prompts': async () => {
    const texts = ['', ''];
    const stream = await client.completions.create({model, prompt: ['Once', 'upon'], max_tokens: 3, temperature: 0, stream: true});
    for await (const chunk of stream) texts[chunk.choices[0].index] += chunk.choices[0].text;
    if (fake) assert.deepEqual(texts, ['one two three', 'one two three']);
  },

  'max_tokens ends an answer': async () => {
    const answer = await client.completions.create({model, prompt: 'Once', max_tokens: 2, ignore_eos: true});
    assert.equal(answer.choices[0].finish_reason, 'length');
    assert.equal(answer.usage.completion_tokens, 2);
  },

  'wrong requests are errors of the right kind': async () => {
    await rejects(client.chat.completions.create({model: 'no-such-model', messages}), 404,
                  (error) => assert.equal(error.code, 'model_not_found'));
    await rejects(client.chat.completions.create({model, messages: []}), 400, (error) => assert.equal(error.param, 'messages'));
    await rejects(client.chat.completions.create({model, messages, temperature: 3}), 400,
                  (error) => assert.equal(error.param, 'temperature'));
    await rejects(client.chat.completions.create({model, messages, tools: [{type: 'function', function: {name: 'f'}}]}), 400,
                  (error) => assert.equal(error.param, 'tools'));
    await rejects(client.chat.completions.create({model, messages, max_tokens: 2_000_000_000}), 400,
                  (error) => assert.equal(error.code, 'context_length_exceeded'));
    await rejects(client.chat.completions.create({model, messages, stream: true, n: 0}), 400);
  },

  'a client that goes away leaves the server well': async () => {
    const stream = await client.completions.create({model, prompt: 'Once', max_tokens: 50, ignore_eos: true, stream: true});
    for await (const chunk of stream) {
      assert.ok(chunk.choices.length > 0);
      break;  // Closes the connection.
    }
    const controller = new AbortController();
    const waiting = client.completions.create({model, prompt: 'Once', max_tokens: 50, ignore_eos: true, ...(fake ? {cache_salt: 'hang'} : {})},
                                              {signal: controller.signal});
    setTimeout(() => controller.abort(), 50);
    await waiting.then(() => assert.ok(!fake), (error) => assert.ok(error instanceof OpenAI.APIUserAbortError));
    const after = await client.completions.create({model, prompt: 'Once', max_tokens: 1});
    assert.equal(after.choices.length, 1);
  },
};

const fakeChecks = {
  'stop texts': async () => {
    const answer = await client.completions.create({model, prompt: 'Once', max_tokens: 8, stop: [' three']});
    assert.equal(answer.choices[0].text, 'one two');
    assert.equal(answer.choices[0].finish_reason, 'stop');
  },
  "the cluster's errors": async () => {
    const ask = (cache_salt, stream) => client.completions.create({model, prompt: 'Once', cache_salt, stream});
    for (const stream of [false, true]) {
      await rejects(ask('overload', stream), 429, (error) => assert.ok(error instanceof OpenAI.RateLimitError));
      await rejects(ask('down', stream), 503);
      await rejects(ask('broken', stream), 500);
    }
  },
  'an error in the middle of a stream': async () => {
    const stream = await client.completions.create({model, prompt: 'Once', cache_salt: 'late', stream: true});
    let text = '';
    await assert.rejects(async () => {
      for await (const chunk of stream) text += chunk.choices[0].text;
    }, /decode node died/);
    assert.equal(text, 'one two');
  },
  'retries after an overload': async () => {
    const retrying = new OpenAI({baseURL, apiKey: 'unused', maxRetries: 1});
    await rejects(retrying.completions.create({model, prompt: 'Once', cache_salt: 'overload'}), 429);
  },
};

for (const [name, check] of Object.entries({...checks, ...(fake ? fakeChecks : {})})) {
  await check();
  console.log(`ok: ${name}`);
}
console.log('all passed');
