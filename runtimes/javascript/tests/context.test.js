'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');
const { bindWorker } = require('./support.js');

const JSON_TYPE = [['content-type', 'application/json']];

/** Binds a function that replies with the JSON of an expression over `req`. */
function bindExpression(t, expression) {
  return bindWorker(t, `module.exports = ({ req, res }) => res.json(${expression})`);
}

test('the request has the fields of the call', async (t) => {
  const host = await bindExpression(
    t,
    '[req.method, req.scheme, req.host, req.port, req.path, req.url, req.queryString, req.query, req.headers]',
  );
  const { text } = await host.call({
    method: 'PATCH',
    scheme: 'https',
    host: 'example.org',
    port: 8443,
    path: '/%C3%A4/ü',
    url: 'https://example.org:8443/%C3%A4/ü?a=1&b',
    queryString: 'a=1&b',
    query: [
      ['a', '1'],
      ['b', ''],
    ],
    headers: [
      ['x-name', 'ä€😀'],
      ['cookie', 'a=1; b=2'],
    ],
  });
  assert.deepEqual(JSON.parse(text), [
    'PATCH',
    'https',
    'example.org',
    8443,
    '/%C3%A4/ü',
    'https://example.org:8443/%C3%A4/ü?a=1&b',
    'a=1&b',
    { a: '1', b: '' },
    { 'x-name': 'ä€😀', cookie: 'a=1; b=2' },
  ]);
});

test('the body is text unless its type is JSON', async (t) => {
  const host = await bindExpression(t, '[req.body]');
  for (const [type, body, expected] of [
    ['application/json', '{"a":[1]}', { a: [1] }],
    ['APPLICATION/JSON; charset=utf-8', 'null', null],
    ['application/json', '', {}],
    ['not-application/json', '{}', '{}'],
    ['application/octet-stream', 'ab', 'ab'],
    ['', 'ä', 'ä'],
  ]) {
    const headers = type === '' ? [] : [['content-type', type]];
    const { text } = await host.call({ headers, body });
    assert.deepEqual(JSON.parse(text), [expected], `${type}: ${body}`);
  }
});

test('bodyText, bodyRaw and bodyBinary do not depend on the type', async (t) => {
  const host = await bindExpression(
    t,
    '[req.bodyText, req.bodyRaw, Buffer.isBuffer(req.bodyBinary), req.bodyBinary.toString("hex")]',
  );
  const { text } = await host.call({ headers: JSON_TYPE, body: Buffer.from('00ff41', 'hex') });
  assert.deepEqual(JSON.parse(text), ['\0\ufffdA', '\0\ufffdA', true, '00ff41']);
});

test('bodyJson parses any type and throws on invalid and on empty input', async (t) => {
  const host = await bindExpression(t, 'req.bodyJson');
  assert.equal((await host.call({ body: '{"a": 1}' })).text, '{"a":1}');
  for (const body of ['', '{', 'text']) {
    const { failed } = await host.call({ body });
    assert.equal(failed.reason, 1, body);
    assert.match(failed.message, /SyntaxError[^]*index\.js:1/);
  }
});

test('the request looks like a plain object', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = ({ req, res }) => {
      const { headers, ...rest } = req;
      headers.added = 'yes';
      req.path = '/changed';
      req.own = 1;
      return res.json({
        keys: Object.keys(req),
        rest: Object.keys(rest),
        copy: { ...req }.bodyText,
        text: JSON.parse(JSON.stringify(req)).method,
        stable: req.headers === headers && req.headers.added === 'yes' && req.query === req.query,
        path: req.path,
        has: 'body' in req && Object.hasOwn(req, 'body') && !('nothing' in req),
        clone: structuredClone({ ...req }).path,
        invalidJson: (() => { try { return req.bodyJson } catch { return 'throws' } })(),
        shown: require('node:util').inspect(req).includes("bodyText: 'hi'"),
        frozen: Object.isFrozen(Object.freeze(req)),
      });
    }`,
  );
  const { keys, rest, ...other } = JSON.parse((await host.call({ body: 'hi' })).text);
  const names =
    'method scheme host port path url queryString query headers bodyBinary bodyText bodyRaw body';
  assert.deepEqual(keys, [...names.split(' '), 'own']);
  assert.deepEqual(
    rest,
    names.split(' ').filter((name) => name !== 'headers'),
  );
  assert.deepEqual(other, {
    copy: 'hi',
    text: 'GET',
    stable: true,
    path: '/changed',
    has: true,
    clone: '/changed',
    invalidJson: 'throws',
    shown: true,
    frozen: true,
  });
});

test('responses are built as the protocol says', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = async ({ req, res }) => {
      const { text, json, binary, empty, redirect, send } = res;
      return eval(req.bodyText);
    }`,
  );
  const json = ['content-type', 'application/json'];
  for (const [expression, status, body, headers = []] of [
    ["text('grün')", 200, 'grün'],
    ["text('x', 404, { 'X-A': 1 })", 404, 'x', [['X-A', '1']]],
    ["text('a'.repeat(100000))", 200, 'a'.repeat(100000)],
    ["json({ a: [1, 'ä'], b: {} })", 200, '{"a":[1,"ä"],"b":{}}', [json]],
    ['json({})', 200, '{}', [json]],
    ["json(1, 201, { 'Content-Type': 'text/plain', a: 'b' })", 201, '1', [['a', 'b'], json]],
    ["json(1, 200, new Headers({ 'Content-Type': 'x', a: 'b' }))", 200, '1', [['a', 'b'], json]],
    ['empty()', 204, ''],
    ["redirect('/to')", 301, '', [['location', '/to']]],
    [
      "redirect('/to', 302, { Location: '/no', a: 'b' })",
      302,
      '',
      [
        ['a', 'b'],
        ['location', '/to'],
      ],
    ],
    ['send(50)', 200, '50'],
    ["send(Buffer.from('ab'))", 200, 'ab'],
    ['send({ a: 1 })', 200, '{"a":1}'],
    ["binary(Buffer.from('ab'), 202)", 202, 'ab'],
    ['binary(new Uint8Array([104, 105]).buffer)', 200, 'hi'],
    ['binary(new Uint8Array([0, 104, 105]).subarray(1))', 200, 'hi'],
    ['binary(new Uint16Array([0x6968]))', 200, 'hi'],
    ["binary(new Blob(['b', 'lob']), 203)", 203, 'blob'],
    ["({ body: 'plain' })", 200, 'plain'],
    ['({})', 200, ''],
    ["({ body: 'x', statusCode: '418', headers: null })", 418, 'x'],
    [
      "text('', 200, { 'set-cookie': ['a=1', 'b=2'], none: undefined })",
      200,
      '',
      [
        ['set-cookie', 'a=1'],
        ['set-cookie', 'b=2'],
      ],
    ],
    [
      "new Response('web', { status: 206, headers: { a: 'b', 'content-type': 'x/y' } })",
      206,
      'web',
      [
        ['a', 'b'],
        ['content-type', 'x/y'],
      ],
    ],
  ]) {
    const reply = await host.call({ body: expression });
    assert.deepEqual(
      [reply.status, reply.text, reply.headers],
      [status, body, headers],
      expression,
    );
  }
});

test('bytes are sent as they are', async (t) => {
  const host = await bindWorker(t, 'module.exports = ({ req, res }) => res.binary(req.bodyBinary)');
  const body = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
  assert.deepEqual((await host.call({ body })).body, body);
});

test('a value that was built but not returned does not count', async (t) => {
  const host = await bindWorker(
    t,
    "module.exports = ({ res }) => { res.text('no'); const r = res.json(1); r.headers.x = 'y'; return res.text('yes') }",
  );
  for (let round = 0; round < 2; round++) {
    const { text, headers } = await host.call();
    assert.deepEqual([text, headers], ['yes', []]);
  }
});

const notAResponse = (kind) =>
  `A function must return a response such as context.res.text(), not ${kind}.`;

test('a reply that cannot be sent is told to the developer', async (t) => {
  const host = await bindWorker(t, 'module.exports = ({ req, res }) => eval(req.bodyText)');
  for (const [expression, message] of [
    ["'text'", notAResponse('string')],
    ['7', notAResponse('number')],
    ['true', notAResponse('boolean')],
    ["['a', 'b']", notAResponse('Array')],
    ["({ greeting: 'hello' })", notAResponse('Object')],
    ["Buffer.from('ab')", notAResponse('Buffer')],
    ['new Map()', notAResponse('Map')],
    ['() => {}', notAResponse('function')],
    ["res.text('', 99)", 'Status code 99 is not an integer from 100 to 999.'],
    ["res.text('', 'many')", 'Status code many is not an integer from 100 to 999.'],
    [
      "res.text('', 200, Object.fromEntries(Array.from({ length: 257 }, (_, i) => [i, ''])))",
      'The reply has more than 256 headers.',
    ],
    [
      "res.text('', 200, { a: 'x'.repeat(65536) })",
      "The reply's headers are larger than 65536 bytes.",
    ],
  ]) {
    const { failed } = await host.call({ body: expression });
    assert.deepEqual([failed.reason, failed.message], [2, message]);
  }
  assert.equal(
    (await host.call({ body: "res.text('', 200, { a: 'x'.repeat(65000) })" })).status,
    200,
  );
});

test('entries go to logs and errors, before the head', async (t) => {
  const host = await bindWorker(
    t,
    `module.exports = async (context) => {
      const { log, error } = context;
      log('one', 2, { three: 3n });
      error(new Error('four').message);
      await null;
      log('x'.repeat(9000));
      return context.res.empty();
    }`,
  );
  const { frames, logs, errors } = await host.call();
  assert.deepEqual(
    frames.map(({ kind }) => kind),
    ['log', 'log', 'log', 'head'],
  );
  assert.deepEqual(errors, ['four']);
  const cut = '... Log truncated due to size limit (8000 characters)';
  assert.deepEqual(logs, ['one 2 {"three":"3"}', 'x'.repeat(8000) + cut]);
});

test('with logging off nothing is logged', async (t) => {
  const host = await bindWorker(
    t,
    "module.exports = ({ res, log, error }) => { log(1); error(2); console.log(3); return res.text('ok') }",
  );
  const { frames } = await host.call({ logging: false });
  assert.deepEqual(
    frames.map(({ kind }) => kind),
    ['head'],
  );
  assert.deepEqual(
    host.framesOf(0).map(({ kind }) => kind),
    ['hello', 'bound'],
  );
});
