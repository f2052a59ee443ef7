'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const test = require('node:test');
const { FrameReader, ProtocolError, decodeFrame } = require('../src/frames.js');
const { FrameWriter } = require('../src/frame-writer.js');
const { Payload, decode, encode } = require('./fake-host.js');

const VECTORS = path.join(__dirname, '../../../docs/protocols/worker-vectors.json');
const { valid, invalid } = JSON.parse(fs.readFileSync(VECTORS, 'utf8'));

const KINDS = { 1: 'bind', 2: 'call', 3: 'body', 4: 'end', 5: 'cancel', 6: 'drain', 7: 'window' };

/** A decoded frame in the words of the vectors. */
function inVectorForm(frame) {
  const forms = {
    bind: () => ({
      version: frame.version,
      code_dir: frame.codeDirectory,
      entrypoint: frame.entrypoint,
      environment: frame.environment,
    }),
    call: () => ({
      timeout_ms: frame.timeout,
      logging: frame.logging,
      more: frame.more,
      method: frame.method,
      url: frame.url,
      scheme: frame.scheme,
      host: frame.host,
      port: frame.port,
      path: frame.path,
      query_string: frame.queryString,
      query: Object.entries(frame.query()),
      headers: Object.entries(frame.headers()),
      body_hex: frame.body.toString('hex'),
    }),
    body: () => ({ body_hex: frame.body.toString('hex') }),
    cancel: () => ({ reason: frame.reason }),
    window: () => ({ bytes: frame.bytes }),
  };
  const kind = KINDS[frame.kind];
  return { kind, call: frame.call, fields: forms[kind]?.() ?? {} };
}

function read(...chunks) {
  const frames = [];
  const reader = new FrameReader((frame) => frames.push(inVectorForm(frame)));
  for (const chunk of chunks) reader.push(chunk);
  return frames;
}

const writes = {
  hello: (writer, call, fields) =>
    writer.hello({
      versions: [fields.version_min, fields.version_max],
      language: fields.language,
      languageVersion: fields.language_version,
      workerVersion: fields.worker_version,
      capabilities: fields.capabilities,
      mostCalls: fields.max_calls,
    }),
  bound: (writer) => writer.bound(),
  bind_failed: (writer, call, { reason, message }) => writer.bindFailed(reason, message),
  head: (writer, call, { status, more, headers, body_hex: body }) =>
    writer.head(call, status, more, headers.flat(), Buffer.from(body, 'hex')),
  body: (writer, call, { body_hex: body }) => writer.body(call, Buffer.from(body, 'hex')),
  end: (writer, call) => writer.end(call),
  log: (writer, call, { stream, text }) => writer.log(call, stream, text),
  failed: (writer, call, { reason, message }) => writer.failed(call, reason, message),
  window: (writer, call, { bytes }) => writer.window(call, bytes),
};

/** What a writer sends for what `write` does with it, as frames without their lengths. */
function written(write) {
  const chunks = [];
  const writer = new FrameWriter(
    (bytes) => chunks.push(bytes),
    () => {},
  );
  write(writer);
  writer.flush();
  return Buffer.concat(chunks);
}

for (const { name, sender, kind, call, fields, hex } of valid) {
  if (sender === 'host') {
    test(`decodes: ${name}`, () => {
      assert.deepEqual(read(Buffer.from(hex, 'hex')), [{ kind, call, fields }]);
    });
  } else {
    test(`encodes: ${name}`, () => {
      assert.equal(written((writer) => writes[kind](writer, call, fields)).toString('hex'), hex);
    });
  }
}

for (const { name, sender, hex } of invalid) {
  if (sender !== 'host') continue;
  test(`refuses: ${name}`, () => {
    assert.throws(() => read(Buffer.from(hex, 'hex')), ProtocolError);
  });
}

test('refuses what is not UTF-8 in a call, though it is decoded later', () => {
  const frame = encode.call(1, { path: '/PATH' });
  frame[frame.indexOf('PATH')] = 0xff;
  assert.throws(() => read(frame), ProtocolError);
});

test('reads the same frames however the stream is cut', () => {
  const ofHost = valid.filter(({ sender }) => sender === 'host');
  const stream = Buffer.from(ofHost.map(({ hex }) => hex).join(''), 'hex');
  const whole = read(stream);
  assert.equal(whole.length, ofHost.length);
  for (const size of [1, 2, 3, 5, 7, 64, 333]) {
    const chunks = [];
    for (let at = 0; at < stream.length; at += size) chunks.push(stream.subarray(at, at + size));
    assert.deepEqual(read(...chunks), whole, `in chunks of ${size}`);
  }
});

test('a frame does not refer to the bytes it was read from', () => {
  const bytes = encode.call(1, { path: '/kept', headers: [['a', 'ä']], body: 'kept' });
  const frame = decodeFrame(bytes, 4, bytes.length);
  bytes.fill(0);
  assert.deepEqual([frame.path, frame.headers(), `${frame.body}`], ['/kept', { a: 'ä' }, 'kept']);
});

test('a truncated frame is refused at every length', () => {
  const call = encode.call(7, { query: [['a', '1']], headers: [['b', '2']] });
  for (let end = 5; end < call.length; end++) {
    assert.throws(() => decodeFrame(call, 4, end), ProtocolError, `cut at ${end}`);
  }
});

test('a header named __proto__ is a header', () => {
  const bytes = encode.call(1, { headers: [['__proto__', 'x']] });
  const headers = decodeFrame(bytes, 4, bytes.length).headers();
  assert.deepEqual(Object.entries(headers), [['__proto__', 'x']]);
});

test('frames of one turn leave in one write', () => {
  const chunks = [];
  let endTurn;
  const writer = new FrameWriter(
    (bytes) => chunks.push(bytes),
    (flush) => {
      assert.equal(endTurn, undefined, 'scheduled once');
      endTurn = flush;
    },
  );
  writer.bound();
  writer.head(1, 200, false, [], 'one');
  writer.head(2, 200, false, [], 'two');
  assert.equal(chunks.length, 0);
  endTurn();
  assert.equal(chunks.length, 1);
});

test("frames larger than the writer's chunk arrive whole and in order", () => {
  const large = Buffer.alloc(262144, 'x');
  const stream = written((writer) => {
    writer.head(1, 200, true, ['a', 'b'], 'small');
    writer.body(1, large);
    writer.body(1, large);
    writer.end(1);
  });
  const kinds = [];
  for (let at = 0; at < stream.length;) {
    const end = at + 4 + stream.readUInt32BE(at);
    kinds.push(decode(stream.subarray(at + 4, end)).kind);
    at = end;
  }
  assert.deepEqual(kinds, ['head', 'body', 'body', 'end']);
});

test('long native output is split between characters', () => {
  const text = `a${'😀'.repeat(30000)}`;
  const stream = written((writer) => writer.log(1, 3, text));
  const parts = [];
  for (let at = 0; at < stream.length;) {
    const length = stream.readUInt32BE(at);
    assert.ok(length - 6 <= 65536, `${length - 6} bytes of text`);
    parts.push(decode(stream.subarray(at + 4, at + 4 + length)).text);
    at += 4 + length;
  }
  assert.ok(parts.length > 1);
  assert.equal(parts.join(''), text);
});

test('half a surrogate pair is sent as a replacement character', () => {
  const stream = written((writer) => writer.log(1, 1, `${'x'.repeat(40)}\ud83d`));
  assert.ok(decode(stream.subarray(4)).text.endsWith('x\ufffd'));
  assert.deepEqual(stream, new Payload().u8(1).bytes(stream.subarray(10)).frame(0x87, 1));
});
