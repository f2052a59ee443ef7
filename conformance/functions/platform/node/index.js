'use strict';

/** What the platform's tests deploy: each path is something that an instance does or tells. */

const crypto = require('node:crypto');
const fs = require('node:fs');

const instance = crypto.randomUUID();
const guess = Math.random();
const hoarded = [];
let closed = 0;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const whoami = ({ res }) => res.json({ instance, guess, version: process.env.VERSION ?? '' });

function list(directory) {
  try {
    return fs.readdirSync(directory);
  } catch {
    return [];
  }
}

function read(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

function look() {
  const processes = list('/proc').filter((name) => /^\d+$/.test(name));
  return {
    environment: process.env,
    code: list(__dirname),
    temporary: list('/tmp'),
    processes: processes.map((pid) => read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ')),
    sockets: read('/proc/net/unix'),
  };
}

async function* stream() {
  try {
    for (;;) {
      yield 'piece\n';
      await sleep(5);
    }
  } finally {
    closed += 1;
  }
}

const actions = {
  '/': whoami,
  '/sleep': async (context) => {
    context.log('began');
    await sleep(Number(context.req.query.ms));
    context.log('finished');
    return whoami(context);
  },
  '/stream': ({ res }) => res.text(stream()),
  '/closed': ({ res }) => res.json(closed),
  '/crash': () => process.exit(3),
  '/hoard': ({ req, res }) => {
    for (let mib = 0; mib < Number(req.query.mib); mib += 1) hoarded.push(Buffer.alloc(1 << 20, 1));
    return res.json(hoarded.length);
  },
  '/flood': ({ req, res, log }) => {
    for (let kib = 0; kib < Number(req.query.kib); kib += 1) log('x'.repeat(1023));
    return res.empty();
  },
  '/write': ({ req, res }) => {
    fs.writeFileSync(req.query.path, 'ours');
    return res.empty();
  },
  '/look': ({ res }) => res.json(look()),
  '/echo': ({ req, res }) => res.json({ path: req.path, headers: req.headers }),
};

module.exports = (context) => (actions[context.req.path] ?? actions['/echo'])(context);
