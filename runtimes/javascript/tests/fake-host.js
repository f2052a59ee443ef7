'use strict';

/** A host for tests and measurements: the other side of the protocol, in plain form. */

const { spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

const WORKER = path.join(__dirname, '..', 'src', 'worker.js');

/** How long a test waits for something that never comes. */
const PATIENCE_MS = 10000;

/** Builds a payload field by field. */
class Payload {
  #parts = [];

  u8(value) {
    return this.bytes(Buffer.from([value]));
  }

  u16(value) {
    const part = Buffer.alloc(2);
    part.writeUInt16BE(value);
    return this.bytes(part);
  }

  u32(value) {
    const part = Buffer.alloc(4);
    part.writeUInt32BE(value);
    return this.bytes(part);
  }

  bytes(part) {
    this.#parts.push(part);
    return this;
  }

  string(text) {
    const part = Buffer.from(text);
    return this.u32(part.length).bytes(part);
  }

  pairs(pairs) {
    this.u16(pairs.length);
    for (const [name, value] of pairs) this.string(name).string(value);
    return this;
  }

  frame(kind, call) {
    const payload = Buffer.concat(this.#parts);
    const head = new Payload()
      .u32(payload.length + 5)
      .u8(kind)
      .u32(call);
    return Buffer.concat([...head.#parts, payload]);
  }
}

const encode = {
  bind: ({ version = 1, directory, entrypoint, environment = [] }) =>
    new Payload().u16(version).string(directory).string(entrypoint).pairs(environment).frame(1, 0),
  call: (id, options = {}) => {
    const {
      timeout = 15000,
      logging = true,
      more = false,
      method = 'GET',
      url = 'http://localhost:3000/',
      scheme = 'http',
      host = 'localhost',
      port = 3000,
      path: target = '/',
      queryString = '',
      query = [],
      headers = [],
      body = '',
    } = options;
    return new Payload()
      .u32(timeout)
      .u8((logging ? 1 : 0) | (more ? 2 : 0))
      .string(method)
      .string(url)
      .string(scheme)
      .string(host)
      .u16(port)
      .string(target)
      .string(queryString)
      .pairs(query)
      .pairs(headers)
      .bytes(Buffer.from(body))
      .frame(2, id);
  },
  body: (id, bytes) => new Payload().bytes(Buffer.from(bytes)).frame(3, id),
  end: (id) => new Payload().frame(4, id),
  cancel: (id, reason = 1) => new Payload().u8(reason).frame(5, id),
  drain: () => new Payload().frame(6, 0),
  window: (id, bytes) => new Payload().u32(bytes).frame(7, id),
};

/** Decodes one frame of a worker: the bytes behind its length. */
function decode(frame) {
  let at = 5;
  const take = (count) => frame.subarray(at, (at += count));
  const u8 = () => take(1)[0];
  const u16 = () => take(2).readUInt16BE();
  const u32 = () => take(4).readUInt32BE();
  const string = () => take(u32()).toString();
  const pairs = () => Array.from({ length: u16() }, () => [string(), string()]);
  const rest = () => Buffer.from(take(frame.length - at));
  const layouts = {
    0x81: () => ({
      kind: 'hello',
      version_min: u16(),
      version_max: u16(),
      language: string(),
      language_version: string(),
      worker_version: string(),
      capabilities: u32(),
      max_calls: u32(),
    }),
    0x82: () => ({ kind: 'bound' }),
    0x83: () => ({ kind: 'bind_failed', reason: u8(), message: string() }),
    0x84: () => ({ kind: 'head', status: u16(), more: u8() === 1, headers: pairs(), body: rest() }),
    0x85: () => ({ kind: 'body', body: rest() }),
    0x86: () => ({ kind: 'end' }),
    0x87: () => ({ kind: 'log', stream: u8(), text: rest().toString() }),
    0x88: () => ({ kind: 'failed', reason: u8(), message: string() }),
    0x89: () => ({ kind: 'window', bytes: u32() }),
  };
  const fields = layouts[frame[0]]();
  if (at !== frame.length) throw new Error(`bytes behind a frame of kind ${fields.kind}`);
  return { call: frame.readUInt32BE(1), ...fields };
}

/** A running worker with everything it has sent. */
class FakeHost {
  frames = [];
  stderr = '';
  #listeners = new Set();
  #nextId = 1;
  #rest = Buffer.alloc(0);

  /** Starts a worker; returns when it has connected. */
  static async start({ execArguments = [] } = {}) {
    const host = new FakeHost();
    host.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'hearth-node-'));
    const socketPath = path.join(host.directory, 'worker.sock');
    const server = net.createServer().listen(socketPath);
    await once(server, 'listening');
    host.process = spawn(process.execPath, [...execArguments, WORKER], {
      env: { PATH: process.env.PATH, HOME: '/tmp', LANG: 'C.UTF-8', HEARTH_SOCKET: socketPath },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    host.exit = once(host.process, 'exit').then(([code]) => code);
    host.process.stdout.resume();
    host.process.stderr.on('data', (data) => {
      host.stderr += data;
    });
    host.stderrEnd = once(host.process.stderr, 'end');
    [host.socket] = await once(server, 'connection');
    server.close();
    host.socket.on('data', (data) => host.#push(data));
    host.socket.on('error', () => {});
    host.closed = new Promise((resolve) => host.socket.on('close', resolve));
    return host;
  }

  /** Writes files into a new code directory. */
  code(files) {
    const directory = fs.mkdtempSync(path.join(this.directory, 'code-'));
    for (const [name, text] of Object.entries(files)) {
      fs.mkdirSync(path.dirname(path.join(directory, name)), { recursive: true });
      fs.writeFileSync(path.join(directory, name), text);
    }
    return directory;
  }

  send(...frames) {
    this.socket.write(Buffer.concat(frames));
  }

  /** Binds code and returns the answer. */
  async bind(files, { entrypoint = 'index.js', environment = [] } = {}) {
    this.codeDirectory = this.code(files);
    this.send(encode.bind({ directory: this.codeDirectory, entrypoint, environment }));
    return this.frame(({ kind }) => kind === 'bound' || kind === 'bind_failed');
  }

  /** Starts a call and returns its id. */
  begin(options) {
    const id = this.#nextId++;
    this.send(encode.call(id, options));
    return id;
  }

  /** Makes a call and returns what came of it. */
  call(options) {
    return this.outcome(this.begin(options));
  }

  /** Waits for the frame that ends a call; returns all that was sent for the call. */
  async outcome(id) {
    const ends = ({ kind, more }) =>
      kind === 'end' || kind === 'failed' || (kind === 'head' && !more);
    await this.frame((frame) => frame.call === id && ends(frame));
    const frames = this.framesOf(id);
    const head = frames.find(({ kind }) => kind === 'head');
    const bodies = frames.filter(({ kind }) => kind === 'head' || kind === 'body');
    const logs = (...streams) =>
      frames
        .filter(({ kind, stream }) => kind === 'log' && streams.includes(stream))
        .map(({ text }) => text);
    return {
      id,
      frames,
      status: head?.status,
      headers: head?.headers,
      body: Buffer.concat(bodies.map(({ body }) => body)),
      text: Buffer.concat(bodies.map(({ body }) => body)).toString(),
      logs: logs(1),
      errors: logs(2),
      native: logs(3, 4),
      failed: frames.find(({ kind }) => kind === 'failed'),
    };
  }

  framesOf(id) {
    return this.frames.filter(({ call }) => call === id);
  }

  /** Waits for a frame, which may have come already. */
  frame(matches) {
    return this.until(() => this.frames.find(matches));
  }

  /** Waits until `condition` gives something true after a frame has come. */
  async until(condition) {
    let timer;
    let check;
    const fulfilled = new Promise((resolve, reject) => {
      check = () => {
        const value = condition();
        if (value) resolve(value);
      };
      const giveUp = (why) => () => {
        check();
        reject(new Error(`${why}: ${condition}\n${this.stderr}`));
      };
      this.#listeners.add(check);
      this.closed.then(giveUp('the worker is gone'));
      timer = setTimeout(giveUp('the worker is silent'), PATIENCE_MS);
      check();
    });
    try {
      return await fulfilled;
    } finally {
      clearTimeout(timer);
      this.#listeners.delete(check);
    }
  }

  /** Ends the process, whatever it is doing, and removes its files. */
  async stop() {
    this.process.kill('SIGKILL');
    await this.exit;
    this.socket.destroy();
    fs.rmSync(this.directory, { recursive: true });
  }

  #push(data) {
    let bytes = this.#rest.length > 0 ? Buffer.concat([this.#rest, data]) : data;
    while (bytes.length >= 4 && bytes.length >= 4 + bytes.readUInt32BE(0)) {
      const end = 4 + bytes.readUInt32BE(0);
      this.frames.push(decode(bytes.subarray(4, end)));
      bytes = bytes.subarray(end);
    }
    this.#rest = Buffer.from(bytes);
    for (const check of [...this.#listeners]) check();
  }
}

module.exports = { FakeHost, Payload, WORKER, decode, encode };
