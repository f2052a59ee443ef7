'use strict';

const assert = require('node:assert/strict');
const { createHash } = require('node:crypto');
const test = require('node:test');
const { bindWorker } = require('./support.js');
const { encode } = require('./fake-host.js');

const WINDOW = 262144;

function received(host, id) {
  const parts = host.framesOf(id).filter(({ kind }) => kind === 'head' || kind === 'body');
  return parts.reduce((sum, { body }) => sum + body.length, 0);
}

test('a body in parts is gathered and granted as it comes', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ req, res }) =>
      res.json([req.bodyBinary.length, require('node:crypto').createHash('sha1').update(req.bodyBinary).digest('hex')])`,
  );
  const body = Buffer.alloc(1500000, 'hearth ').fill('x', 700000, 800000);
  const id = host.begin({ more: true, body: body.subarray(0, 10) });
  for (let at = 10; at < body.length; at += 65536)
    host.send(encode.body(id, body.subarray(at, at + 65536)));
  host.send(encode.end(id));
  const { text, frames } = await host.outcome(id);
  assert.deepEqual(JSON.parse(text), [body.length, createHash('sha1').update(body).digest('hex')]);
  const granted = frames
    .filter(({ kind }) => kind === 'window')
    .reduce((sum, { bytes }) => sum + bytes, 0);
  assert.equal(granted, body.length);
});

test('a body that turns out to be empty is complete', async (t) => {
  const host = await bindWorker(t, 'module.exports = ({ req, res }) => res.json(req.bodyText)');
  const id = host.begin({ more: true });
  host.send(encode.end(id));
  assert.equal((await host.outcome(id)).text, '""');
});

test('a large reply keeps to the window', async (t) => {
  const host = await bindWorker(
    t,
    "module.exports = ({ res }) => res.text('x'.repeat(1000000), 201, { a: 'b' })",
  );
  const id = host.begin();
  await host.until(() => received(host, id) >= WINDOW);
  // A whole other call: time enough for anything that would be sent beyond the window.
  const other = host.begin();
  await host.until(() => received(host, other) >= WINDOW);
  assert.equal(received(host, id), WINDOW);
  host.send(encode.window(id, 100));
  await host.until(() => received(host, id) > WINDOW);
  assert.equal(received(host, id), WINDOW + 100);
  host.send(encode.window(id, 2 ** 30));
  const { status, headers, text } = await host.outcome(id);
  assert.deepEqual([status, headers, text.length], [201, [['a', 'b']], 1000000]);
});

test('a reply of exactly the window is one frame', async (t) => {
  const host = await bindWorker(t, `module.exports = ({ res }) => res.text('x'.repeat(${WINDOW}))`);
  const { frames } = await host.call();
  assert.deepEqual(
    frames.map(({ kind, more }) => [kind, more]),
    [['head', false]],
  );
});

test('every kind of stream is sent', async (t) => {
  const host = await bindWorker(
    t,
    `const { Readable } = require('node:stream');
    const iterator = (items) => ({ next: async () => ({ done: items.length === 0, value: items.shift() }) });
    async function* later() { yield 'a'; await null; yield Buffer.from('b'); yield new Uint8Array([99]); }
    function* now() { yield 'a'; yield 'b'; yield 'c'; }
    const web = () => new ReadableStream({ start(c) { c.enqueue('ab'); c.enqueue('c'); c.close(); } });
    module.exports = async ({ req, res }) => eval(req.bodyText);`,
  );
  for (const [expression, status, headers = []] of [
    ['later()', 200],
    ['now()', 200],
    ["iterator(['a', 'bc'])", 200],
    ['web()', 200],
    ["Readable.from(['a', 'bc'])", 200],
    ["res.text(later(), 201, { a: 'b' })", 201, [['a', 'b']]],
    ['res.binary(web(), 202)', 202],
    ["res.send(Readable.from([Buffer.from('abc')]))", 200],
    ['({ body: now(), statusCode: 203 })', 203],
    ['new Response(web().pipeThrough(new TextEncoderStream()), { status: 299 })', 299],
  ]) {
    const reply = await host.call({ body: expression });
    assert.deepEqual(
      [reply.status, reply.text, reply.headers],
      [status, 'abc', headers],
      expression,
    );
    assert.equal(reply.frames[0].more, true);
    assert.equal(reply.frames.at(-1).kind, 'end');
  }
});

test('a chunk is sent before the next one exists', async (t) => {
  const host = await bindWorker(
    t,
    `let release;
    module.exports = async ({ req, res }) => {
      if (req.path === '/release') { release(); return res.empty(); }
      return res.text((async function* () {
        yield 'first';
        await new Promise((resolve) => { release = resolve; });
        console.log('between');
        yield 'second';
      })());
    }`,
  );
  const id = host.begin();
  await host.until(() => received(host, id) === 5);
  await host.call({ path: '/release' });
  const { text, native, frames } = await host.outcome(id);
  assert.deepEqual([text, native], ['firstsecond', ['between\n']]);
  assert.deepEqual(
    frames.map(({ kind }) => kind),
    ['head', 'body', 'log', 'body', 'end'],
  );
});

test('production pauses while the window is closed', async (t) => {
  const host = await bindWorker(
    t,
    `let produced = 0;
    module.exports = ({ req, res }) => {
      if (req.path === '/produced') return res.json(produced);
      return (function* () { for (; produced < 100; ) { produced += 1; yield Buffer.alloc(${WINDOW} / 4); } })();
    }`,
  );
  const id = host.begin();
  await host.until(() => received(host, id) === WINDOW);
  assert.equal((await host.call({ path: '/produced' })).text, '5');
  host.send(encode.window(id, WINDOW / 4));
  await host.until(() => received(host, id) > WINDOW);
  assert.equal((await host.call({ path: '/produced' })).text, '6');
});

test('an error in a stream fails the call after its head', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ req, res }) => (async function* () {
      yield 'first';
      if (req.path === '/type') yield { not: 'bytes' };
      throw new Error('half-way');
    })();`,
  );
  for (const [path, message] of [
    ['/', /^Error: half-way\n {4}at .*index\.js/],
    ['/type', /^TypeError: A chunk/],
  ]) {
    const { frames, failed } = await host.call({ path });
    assert.deepEqual(
      frames.map(({ kind }) => kind),
      ['head', 'body', 'failed'],
    );
    assert.equal(failed.reason, 1);
    assert.match(failed.message, message);
  }
});

test('a cancelled stream is stopped', async (t) => {
  const host = await bindWorker(
    t,
    `const { Readable } = require('node:stream');
    async function* endless() { try { for (;;) yield Buffer.alloc(65536); } finally { console.log('generator stopped'); } }
    const node = () => new Readable({ read() {}, destroy(error, done) { console.log('readable stopped'); done(error); } });
    const web = () => new ReadableStream({ cancel() { console.log('web stopped'); } });
    module.exports = ({ req }) => eval(req.bodyText);`,
  );
  for (const [body, text] of [
    ['endless()', 'generator stopped\n'],
    ['node()', 'readable stopped\n'],
    ['web()', 'web stopped\n'],
  ]) {
    const id = host.begin({ body });
    await host.until(() => host.framesOf(id).length > 0);
    host.send(encode.cancel(id));
    assert.equal((await host.outcome(id)).failed.reason, 3);
    await host.frame((frame) => frame.call === 0 && frame.text === text);
    assert.equal(host.framesOf(id).at(-1).kind, 'failed');
  }
});
