'use strict';

/** The fixture function: README.md says what each action does. */

const fs = require('node:fs');

const PIECE = 'x'.repeat(65536);

const gates = new Map();
let served = 0;
let produced = 0;

/** A named place where calls wait until another call opens it. */
class Gate {
  constructor() {
    this.reached = new Promise((resolve) => {
      this.reach = resolve;
    });
    this.opened = new Promise((resolve) => {
      this.open = resolve;
    });
  }

  pass() {
    this.reach();
    return this.opened;
  }
}

function gate(name) {
  if (!gates.has(name)) gates.set(name, new Gate());
  return gates.get(name);
}

const values = {
  'error': () => new Error('boom'),
  'circular': () => {
    const value = { name: 'round' };
    value.self = value;
    return value;
  },
  'bigint': () => 9223372036854775807n,
  'nested bigint': () => ({ lowest: -9223372036854775808n }),
  'set': () => new Set(['apple', 'pear']),
  'url': () => new URL('https://example.test/path?q=1'),
  'date': () => new Date(0),
  'bytes': () => Uint8Array.of(1, 2, 3),
  'nothing': () => undefined,
};

const steps = {
  log: ({ log }, ...rest) => log(...rest),
  error: ({ error }, ...rest) => error(...rest),
  'log value': ({ log }, name) => log(values[name]()),
  print: (_, text) => console.log(text),
  'print error': (_, text) => console.error(text),
  throw: (_, message) => {
    throw new Error(message);
  },
  wait: (_, name) => gate(name).pass(),
  build: ({ res }, kind, ...rest) => void res[kind](...rest),
  reply: ({ res }, kind, ...rest) => res[kind](...rest),
  return: (_, value) => value,
};

async function script(context) {
  for (const [name, ...rest] of context.req.bodyJson) {
    const result = await steps[name](context, ...rest);
    if (name === 'reply' || name === 'return') return result;
  }
}

async function* pieces(name) {
  yield 'first\n';
  await gate(name).pass();
  yield 'second\n';
}

async function* flood(name) {
  produced = 0;
  try {
    while (produced < 4096) {
      produced += 1;
      yield PIECE;
    }
  } finally {
    gate(name).reach();
  }
}

/** Writes what no worker would to whatever sockets this process has. */
function garble() {
  for (let fd = 3; fd < 64; fd += 1) {
    try {
      if (fs.fstatSync(fd).isSocket()) fs.writeSync(fd, Buffer.alloc(64, 0xff));
    } catch {
      // Not an open descriptor.
    }
  }
}

function hoard() {
  const hoarded = [];
  for (;;) hoarded.push(Buffer.alloc(1 << 20, 1));
}

const actions = {
  script,
  body: ({ req, res }) => res.json({ body: req.body }),
  'body text': ({ req, res }) => res.text(req.bodyText),
  'body raw': ({ req, res }) => res.text(req.bodyRaw),
  'body json': ({ req, res }) => res.json({ body: req.bodyJson }),
  'body binary': ({ req, res }) => res.binary(req.bodyBinary),
  'body length': ({ req, res }) => res.json(req.bodyBinary.length),
  'bytes as text': ({ res }) => res.send(Buffer.from([0, 255, 16])),
  request: ({ req, res }) => {
    const { method, scheme, host, port, path, queryString, query, url, headers } = req;
    return res.json({ method, scheme, host, port, path, queryString, query, url, headers });
  },
  environment: ({ res }) => res.json(process.env),
  served: ({ res }) => res.json((served += 1)),
  entrypoint: ({ res }) => res.text('index.js'),
  open: ({ req, res }) => {
    gate(req.headers['x-gate']).open();
    return res.empty();
  },
  reached: async ({ req, res }) => {
    await gate(req.headers['x-gate']).reached;
    return res.empty();
  },
  stream: ({ req, res }) => res.text(pieces(req.headers['x-gate'])),
  flood: ({ req, res }) => res.text(flood(req.headers['x-gate'])),
  produced: ({ res }) => res.json(produced),
  spin: () => {
    for (;;);
  },
  exit: () => process.exit(3),
  garble,
  hoard,
};

module.exports = (context) => actions[context.req.headers['x-action'] ?? 'request'](context);
