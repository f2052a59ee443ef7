'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');
const { encode } = require('./fake-host.js');
const { bindWorker } = require('./support.js');

test('native output belongs to the call that wrote it', async (t) => {
  const host = await bindWorker(
    t,
    `const { setTimeout: sleep } = require('node:timers/promises');
    const arrived = [];
    module.exports = async ({ req, res }) => {
      const name = req.bodyText;
      console.log('start', name);
      await new Promise((resolve) => {
        arrived.push(resolve);
        if (arrived.length === 50) arrived.forEach((go) => go());
      });
      for (let round = 0; round < 3; round++) {
        await sleep(Math.random() * 5);
        process.stdout.write(name + '\\n');
        setImmediate(() => console.error('immediate', name));
        await new Promise(setImmediate);
      }
      return res.text(name);
    }`,
  );
  const ids = Array.from({ length: 50 }, (_, i) => host.begin({ body: `call-${i}` }));
  for (const [i, id] of ids.entries()) {
    const { native, text } = await host.outcome(id);
    assert.equal(text, `call-${i}`);
    const round = [`call-${i}\n`, `immediate call-${i}\n`];
    assert.deepEqual(native, [`start call-${i}\n`, ...round, ...round, ...round]);
  }
  assert.deepEqual(
    host.framesOf(0).map(({ kind }) => kind),
    ['hello', 'bound'],
  );
});

test('standard output and standard error are told apart', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ res }) => {
      console.log('%s is %d', 'answer', 42);
      console.info('info'); console.debug('debug');
      console.warn('warn'); console.error('error');
      process.stdout.write(Buffer.from('bytes'));
      process.stderr.write('');
      process.stdout.cork(); process.stdout.write('cor'); process.stdout.write('ked'); process.stdout.uncork();
      return res.text('ok');
    }`,
  );
  const { frames } = await host.call();
  const logs = frames
    .filter(({ kind }) => kind === 'log')
    .map(({ stream, text }) => [stream, text]);
  assert.deepEqual(logs, [
    [3, 'answer is 42\n'],
    [3, 'info\n'],
    [3, 'debug\n'],
    [4, 'warn\n'],
    [4, 'error\n'],
    [3, 'bytes'],
    [3, 'cor'],
    [3, 'ked'],
  ]);
});

test("output while loading and after the end of a call is nobody's", async (t) => {
  const host = await bindWorker(
    t,
    `console.log('loading');
    let release;
    module.exports = ({ req, res, log }) => {
      if (req.path === '/release') { release(); return res.text('released'); }
      new Promise((resolve) => { release = resolve; }).then(() => { log('dropped'); console.log('late'); });
      return res.text('ok');
    }`,
  );
  const { id } = await host.call();
  await host.call({ path: '/release' });
  await host.frame(({ text }) => text === 'late\n');
  const loose = host.framesOf(0).filter(({ kind }) => kind === 'log');
  assert.deepEqual(
    loose.map(({ stream, text }) => [stream, text]),
    [
      [3, 'loading\n'],
      [3, 'late\n'],
    ],
  );
  assert.deepEqual(
    host.framesOf(id).map(({ kind }) => kind),
    ['head'],
  );
});

test('what was logged before an endless loop has left the worker', async (t) => {
  const host = await bindWorker(
    t,
    "module.exports = ({ log }) => { log('before'); console.log('native'); for (;;); }",
  );
  const id = host.begin();
  await host.until(() => host.framesOf(id).length === 2);
  assert.deepEqual(
    host.framesOf(id).map(({ text }) => text),
    ['before', 'native\n'],
  );
});

test('what was sent before process.exit arrives', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ req, res, log }) => {
      if (req.path === '/last') { log('bye'); return res.text('ok'); }
      process.exit(3);
    }`,
  );
  // In one write, so that the reply of the first has not left when the second ends the process.
  host.send(encode.call(1, { path: '/last' }), encode.call(2));
  assert.equal(await host.exit, 3);
  const { text, logs } = await host.outcome(1);
  assert.deepEqual([text, logs], ['ok', ['bye']]);
});
