'use strict';

const assert = require('node:assert/strict');
const { spawn, spawnSync } = require('node:child_process');
const { once } = require('node:events');
const net = require('node:net');
const path = require('node:path');
const test = require('node:test');
const { bindWorker, startWorker } = require('./support.js');
const { WORKER, Payload, encode } = require('./fake-host.js');

const ECHO = 'module.exports = ({ req, res }) => res.text(req.path)';

test('the worker introduces itself', async (t) => {
  const host = await startWorker(t);
  const hello = await host.frame(({ kind }) => kind === 'hello');
  assert.deepEqual(hello, {
    call: 0,
    kind: 'hello',
    version_min: 1,
    version_max: 1,
    language: 'node',
    language_version: process.versions.node,
    worker_version: '0.1.0',
    capabilities: 1,
    max_calls: 0,
  });
});

test('the function has the given environment and not the socket', async (t) => {
  const host = await bindWorker(
    t,
    `const atLoad = process.env.GREETING;
    module.exports = ({ res }) => res.json([atLoad, process.env.EMPTY, process.env.HEARTH_SOCKET, process.env.HOME, process.cwd()])`,
    {
      environment: [
        ['GREETING', 'Grüße'],
        ['EMPTY', ''],
      ],
    },
  );
  const { text } = await host.call();
  assert.deepEqual(JSON.parse(text), ['Grüße', '', null, '/tmp', process.cwd()]);
});

test('code may lie under a link', async (t) => {
  const host = await startWorker(t);
  const directory = host.code({
    'index.js': "\nmodule.exports = () => { throw new Error('linked') }",
  });
  const link = path.join(host.directory, 'link');
  require('node:fs').symlinkSync(directory, link);
  host.send(encode.bind({ directory: link, entrypoint: 'index.js' }));
  await host.frame(({ kind }) => kind === 'bound');
  assert.match((await host.call()).failed.message, /^Error: linked\n {4}at .*index\.js:2/);
});

test('calls run side by side', async (t) => {
  const host = await bindWorker(
    t,
    `const waiting = [];
    module.exports = ({ req, res }) => new Promise((resolve) => {
      waiting.push(() => resolve(res.text(req.path)));
      if (waiting.length === 100) waiting.reverse().forEach((go) => go());
    });`,
  );
  const ids = Array.from({ length: 100 }, (_, i) => host.begin({ path: `/${i}` }));
  for (const [i, id] of ids.entries()) assert.equal((await host.outcome(id)).text, `/${i}`);
});

test('a cancelled call is answered at once and what is left of it is dropped', async (t) => {
  const host = await bindWorker(
    t,
    `let release;
    module.exports = async ({ req, res, log }) => {
      if (req.path === '/release') { release(); await null; await null; await null; return res.text('released'); }
      await new Promise((resolve) => { release = resolve; });
      log('dropped');
      return res.text('dropped');
    }`,
  );
  const id = host.begin();
  host.send(encode.cancel(id), encode.cancel(id));
  const { failed } = await host.outcome(id);
  assert.deepEqual([failed.reason, failed.message], [3, '']);
  assert.equal((await host.call({ path: '/release' })).text, 'released');
  assert.equal(host.framesOf(id).length, 1);
});

test('a call can be cancelled while its body is coming, and its id used again', async (t) => {
  const host = await bindWorker(t, ECHO);
  const id = host.begin({ more: true, body: 'x' });
  host.send(encode.body(id, 'y'), encode.cancel(id, 2), encode.body(id, 'late'), encode.end(id));
  assert.equal((await host.outcome(id)).failed.reason, 3);
  host.send(encode.call(id, { path: '/again' }));
  const head = await host.frame(({ call, kind }) => call === id && kind === 'head');
  assert.equal(`${head.body}`, '/again');
});

test('frames for calls it does not know are ignored', async (t) => {
  const host = await bindWorker(t, ECHO);
  host.send(encode.body(99, 'x'), encode.end(99), encode.cancel(99), encode.window(99, 1));
  assert.equal((await host.call({ path: '/fine' })).text, '/fine');
});

test('a draining worker finishes its calls and exits with 0', async (t) => {
  const host = await bindWorker(
    t,
    "module.exports = async ({ res }) => { setInterval(() => {}, 1e6); await new Promise(setImmediate); return res.text('done') }",
  );
  const id = host.begin();
  host.send(encode.drain());
  assert.equal((await host.outcome(id)).text, 'done');
  assert.equal(await host.exit, 0);
});

test('a draining worker without calls exits with 0', async (t) => {
  const host = await bindWorker(t, ECHO);
  host.send(encode.drain());
  assert.equal(await host.exit, 0);
});

test('a worker whose host is gone exits with 0', async (t) => {
  const bound = await bindWorker(
    t,
    'setInterval(() => {}, 1e6); module.exports = () => new Promise(() => {})',
  );
  bound.begin();
  const unbound = await startWorker(t);
  for (const host of [bound, unbound]) {
    host.socket.destroy();
    assert.equal(await host.exit, 0);
  }
});

test('what the protocol does not allow ends the worker with 70 and one line', async (t) => {
  const bind = (host) => encode.bind({ directory: host.directory, entrypoint: 'index.js' });
  for (const [name, isBound, frames] of [
    ['a call before bind', false, () => [encode.call(1)]],
    ['drain before bind', false, () => [encode.drain()]],
    [
      'an unknown version',
      false,
      (host) => [encode.bind({ version: 2, directory: host.directory, entrypoint: '' })],
    ],
    ['a second bind', true, (host) => [bind(host)]],
    ['an unknown kind', true, () => [new Payload().frame(0x42, 0)]],
    ['a running call again', true, () => [encode.call(1, { more: true }), encode.call(1)]],
    ['a body for a call without one', true, () => [encode.call(1), encode.body(1, 'x')]],
    ['an end for a call without a body', true, () => [encode.call(1), encode.end(1)]],
    ['a window beyond its limit', true, () => [encode.call(1), encode.window(1, 2 ** 31 - 1)]],
    ['a call after drain', true, () => [encode.call(1), encode.drain(), encode.call(2)]],
    ['a length of 4 GiB', true, () => [Buffer.from('ffffffff0300000001', 'hex')]],
  ]) {
    const host = await startWorker(t);
    if (isBound) await host.bind({ 'index.js': 'module.exports = () => new Promise(() => {})' });
    host.send(...frames(host));
    assert.equal(await host.exit, 70, name);
    await host.stderrEnd;
    assert.match(host.stderr, /^hearth worker: protocol error: [^\n]+\n$/, name);
  }
});

test('a worker without a host says why it ends', () => {
  for (const [socket, message] of [
    [undefined, /^hearth worker: HEARTH_SOCKET is not set\n$/],
    ['/nowhere.sock', /^hearth worker: connect ENOENT \/nowhere\.sock\n$/],
    ['tcp://127.0.0.1:1', /^hearth worker: HEARTH_TOKEN is not set\n$/],
    ['http://127.0.0.1:1', /^hearth worker: HEARTH_SOCKET is neither a path nor [^\n]+\n$/],
  ]) {
    const env = socket === undefined ? {} : { HEARTH_SOCKET: socket };
    const { status, stderr } = spawnSync(process.execPath, [WORKER], { env, encoding: 'utf8' });
    assert.equal(status, 70);
    assert.match(stderr, message);
  }
});

test('over TCP a worker says its token first, and then all it says over a socket', async (t) => {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const env = {
    HEARTH_SOCKET: `tcp://127.0.0.1:${server.address().port}`,
    HEARTH_TOKEN: 'change-me',
  };
  const worker = spawn(process.execPath, [WORKER], { env, stdio: 'ignore' });
  t.after(() => worker.kill());
  const [socket] = await once(server, 'connection');
  const ended = once(worker, 'exit');
  let received = Buffer.alloc(0);
  for await (const data of socket) {
    received = Buffer.concat([received, data]);
    if (received.length >= 'HEARTH change-me\n'.length + 9) break;
  }
  assert.equal(received.subarray(0, 17).toString(), 'HEARTH change-me\n');
  assert.equal(received[17 + 4], 0x81, 'then hello');
  assert.deepEqual(await ended, [0, null], 'it ends with its connection');
});

test('what goes past the capture reaches the real descriptors', async (t) => {
  const host = await bindWorker(
    t,
    "module.exports = ({ res }) => { require('node:fs').writeSync(2, 'direct\\n'); return res.empty() }",
  );
  const { native } = await host.call();
  assert.deepEqual(native, []);
  host.socket.destroy();
  await host.stderrEnd;
  assert.equal(host.stderr, 'direct\n');
});
