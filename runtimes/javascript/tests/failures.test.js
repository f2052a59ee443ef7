'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');
const { bindWorker, startWorker } = require('./support.js');

const NOTHING = 'Return statement missing. return context.res.empty() if no response is expected.';
const SIGNATURE = "Function signature invalid. Did you forget to export a 'main' function?";

test('every way to export a function works', async (t) => {
  const reply = "({ res }) => res.text('ok')";
  for (const [files, entrypoint = 'index.js'] of [
    [{ 'index.js': `module.exports = ${reply}` }],
    [{ 'index.js': `exports.default = async ${reply}` }],
    [{ 'src/main.cjs': `module.exports = ${reply}` }, 'src/main.cjs'],
    [{ handler: `module.exports = ${reply}` }, 'handler'],
    [{ 'index.mjs': `export default ${reply}` }, 'index.mjs'],
    [{ 'index.mjs': `await null; export default async ${reply}` }, 'index.mjs'],
    [{ 'index.js': `export default ${reply}`, 'package.json': '{"type":"module"}' }],
    [{ 'a/b.js': `export default ${reply}`, 'package.json': '{"type":"module"}' }, 'a/b.js'],
  ]) {
    const host = await startWorker(t);
    assert.equal((await host.bind(files, { entrypoint })).kind, 'bound', JSON.stringify(files));
    assert.equal((await host.call()).text, 'ok');
  }
});

test('code that cannot be loaded is explained', async (t) => {
  const module = { 'package.json': '{"type":"module"}' };
  for (const [files, reason, message, entrypoint = 'index.js'] of [
    [{}, 1, /^Failed to load entrypoint, file index\.js does not exist\.$/],
    [{ 'index.js': '' }, 1, /^Failed to load entrypoint, file index does not exist\.$/, 'index'],
    [{}, 1, /^Failed to load entrypoint, file \.\.\/\.\.\/\.\.\/etc\/passwd does not exist\.$/, '../../../etc/passwd'],
    [{ 'index.js/x': '' }, 1, /^Failed to load entrypoint, file index\.js does not exist\.$/],
    [{ 'index.js': 'exports.run = () => {}' }, 2, SIGNATURE],
    [{ 'index.js': 'export default 1', ...module }, 2, SIGNATURE],
    [
      { 'index.js': 'let a;\nconst = 1;' },
      3,
      /^Syntax error in index\.js: Unexpected token '='\n\S*index\.js:2\nconst = 1;/,
    ],
    [
      { 'index.js': 'let a;\nconst = 1;', ...module },
      3,
      /^Syntax error in index\.js: Unexpected token '='\n\S*index\.js:2\nconst = 1;/,
    ],
    [
      { 'index.js': "\nrequire('./b')", 'b.js': '\n}' },
      3,
      /^Syntax error in index\.js: Unexpected token '}'\n\S*b\.js:2\n}[^]*index\.js:2/,
    ],
    [{ 'index.js': "\nJSON.parse('{')" }, 3, /^Syntax error in index\.js: [^]*index\.js:2:6/],
    [
      { 'index.js': "\nrequire('nowhere')" },
      4,
      /^Failed to load module: Cannot find module 'nowhere'\nRequire stack:\n- \S*index\.js\n {4}at [^]*index\.js:2:1/,
    ],
    [
      { 'index.js': "import 'nowhere'", ...module },
      4,
      /^Failed to load module: Cannot find package 'nowhere' imported from \S*index\.js/,
    ],
    [
      { 'index.js': '\nnull.x' },
      5,
      /^Cannot read properties of null \(reading 'x'\)\n {4}at [^]*index\.js:2:6/,
    ],
    [
      { 'index.js': "\nthrow new RangeError('far')" },
      5,
      /^Failed to load module: far\n {4}at [^]*index\.js:2:7/,
    ],
    [{ 'index.js': "throw 'text'" }, 5, /^Failed to load module: text$/],
    [{ 'index.js': 'throw undefined' }, 5, /^Failed to load module: undefined$/],
  ]) {
    const host = await startWorker(t);
    const answer = await host.bind(files, { entrypoint });
    assert.deepEqual([answer.kind, answer.reason], ['bind_failed', reason], answer.message);
    if (message instanceof RegExp) assert.match(answer.message, message);
    else assert.equal(answer.message, message);
    const ownFiles = answer.message.split('\n').filter((line) => line.includes('javascript/src/'));
    assert.deepEqual(ownFiles, []);
  }
});

test('a worker whose bind failed waits for the host and exits with 0', async (t) => {
  const host = await startWorker(t);
  await host.bind({});
  host.socket.end();
  assert.equal(await host.exit, 0);
});

test('a function that returns nothing is told so', async (t) => {
  const host = await bindWorker(t, 'module.exports = ({ req }) => eval(req.bodyText)');
  for (const body of ['undefined', 'null', 'Promise.resolve()', '(async () => {})()']) {
    const { failed, status } = await host.call({ body });
    assert.deepEqual([failed.reason, failed.message, status], [2, NOTHING, undefined], body);
  }
});

test('whatever is thrown fails the call and names the entrypoint', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ req }) => {
      const hidden = new Error('hidden');
      Object.defineProperty(hidden, 'stack', { get() { throw new Error('no stack') } });
      return eval(req.bodyText);
    }`,
  );
  const thrower = (value) => `(() => { throw ${value} })()`;
  for (const [expression, expected] of [
    [thrower("new Error('boom')"), /^Error: boom\n {4}at .*index\.js/],
    [
      `(async () => { await null; throw new Error('later') })()`,
      /^Error: later\n {4}at .*index\.js/,
    ],
    [thrower("'text'"), /^text\n {4}at \S+index\.js$/],
    [thrower('undefined'), /^undefined\n {4}at \S+index\.js$/],
    [thrower('null'), /^null\n/],
    [thrower('{ code: 7 }'), /^{"code":7}\n/],
    [thrower('hidden'), /^Error: hidden\n {4}at \S+index\.js$/],
    [thrower("Object.assign(new Error('x'), { stack: undefined })"), /^Error: x\n/],
    [`Promise.reject('refused')`, /^refused\n/],
    [`require('node:fs').promises.readFile('/nowhere')`, /^Error: ENOENT[^]*index\.js/],
    [`({ then(ok, no) { throw new Error('then') } })`, /^Error: then\n/],
    [`({ get body() { throw new Error('getter') } })`, /^Error: getter\n/],
    [`({ body: { toJSON() { throw new Error('json') } } })`, /^Error: json\n/],
    [thrower("new Error('outer', { cause: 'inner' })"), /\nCaused by: inner/],
  ]) {
    const { failed, errors } = await host.call({ body: expression });
    assert.equal(failed.reason, 1);
    assert.match(failed.message, expected, expression);
    assert.doesNotMatch(failed.message, /javascript\/src\//);
    assert.deepEqual(errors, []);
  }
});

test('an error behind the back of a call fails that call and no other', async (t) => {
  const host = await bindWorker(
    t,
    `const waiting = [];
    module.exports = ({ req, res }) => {
      const forever = new Promise((resolve) => waiting.push(resolve));
      if (req.path === '/timer') setTimeout(() => { throw new Error('in a timer') });
      if (req.path === '/rejection') { Promise.reject(new Error('unhandled')); }
      if (req.path === '/release') { waiting.forEach((resolve) => resolve(res.text('released'))); }
      return forever;
    }`,
  );
  const innocent = host.begin();
  const timer = await host.call({ path: '/timer' });
  assert.match(timer.failed.message, /^Error: in a timer\n {4}at .*index\.js/);
  const rejection = await host.call({ path: '/rejection' });
  assert.match(rejection.failed.message, /^Error: unhandled\n {4}at .*index\.js/);
  assert.equal((await host.call({ path: '/release' })).text, 'released');
  assert.equal((await host.outcome(innocent)).text, 'released');
});

test("an error after the end of its call goes to the instance's log", async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ res }) => {
      setTimeout(() => { throw new Error('too late') });
      return res.text('ok');
    }`,
  );
  assert.equal((await host.call()).text, 'ok');
  const log = await host.frame(({ call, kind }) => call === 0 && kind === 'log');
  assert.equal(log.stream, 4);
  assert.match(log.text, /^Error: too late\n {4}at .*index\.js[^]*\n$/);
  assert.equal((await host.call()).text, 'ok');
});
