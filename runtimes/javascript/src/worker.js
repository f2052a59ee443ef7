'use strict';

/**
 * The Node.js worker of Hearth: one function, many calls, one socket.
 *
 * ```text
 * socket ──► FrameReader ──► Worker ──► Call ──► the function
 *    ▲                                   │
 *    └────────── FrameWriter ◄───────────┘
 * ```
 *
 * The states are those of docs/protocols/worker.md. Not here: HTTP, secrets, deadlines, log files,
 * defaults of headers; all that is the host's.
 */

const fs = require('node:fs');
const net = require('node:net');
const { AsyncLocalStorage } = require('node:async_hooks');
const { FrameReader, Kind, ProtocolError } = require('./frames.js');
const { FrameWriter } = require('./frame-writer.js');

const WORKER_VERSION = '0.1.0';
const PROTOCOL_VERSION = 1;
const ATTRIBUTES_NATIVE_OUTPUT = 1;

const READ_BYTES = 65536;
const EXIT_BROKEN = 70;
const NATIVE_STREAMS = 2;
const NATIVE_ERROR = 4;

const State = Object.freeze({
  UNBOUND: 'unbound',
  BINDING: 'binding',
  BOUND: 'bound',
  FAILED: 'failed',
  DRAINING: 'draining',
});

class Worker {
  #state = State.UNBOUND;
  #socket;
  #calls = new Map();
  #current = new AsyncLocalStorage();
  #Call;
  #code;
  #main;

  /** @param {{ connect: object, token?: string }} host where it listens, and what it is told first */
  constructor({ connect, token }) {
    const reader = new FrameReader((frame) => this.#receive(frame));
    const onRead = (count, buffer) => {
      this.#guard(() => reader.push(buffer.subarray(0, count)));
      return true;
    };
    this.#socket = net.connect({
      ...connect,
      onread: { buffer: Buffer.allocUnsafeSlow(READ_BYTES), callback: onRead },
    });
    if (token !== undefined) this.#socket.write(`HEARTH ${token}\n`);
    // Not in the event itself: `hello` leaves in a later listener of it.
    this.#socket.once('connect', () => setImmediate(() => this.#prepare()));
    this.#socket.on('error', (error) => this.#onSocketError(error));
    this.#socket.on('close', () => process.exit(0));
    this.writer = new FrameWriter((bytes) => this.#socket.write(bytes), setImmediate);
  }

  /** Introduces the worker to the host. */
  start() {
    process.on('uncaughtException', (error) => this.#onStrayError(error));
    process.on('unhandledRejection', (reason) => this.#onStrayError(reason));
    process.on('exit', () => this.writer.flush());
    this.writer.hello({
      versions: [PROTOCOL_VERSION, PROTOCOL_VERSION],
      language: 'node',
      languageVersion: process.versions.node,
      workerVersion: WORKER_VERSION,
      capabilities: ATTRIBUTES_NATIVE_OUTPUT,
      mostCalls: 0,
    });
    this.writer.flush();
  }

  /** Runs the function for a call, in the context that makes native output the call's. */
  enter(call, context) {
    return this.#current.run(call, this.#main, context);
  }

  /** Runs `callback` in the context of a call. */
  runIn(call, callback) {
    return this.#current.run(call, callback);
  }

  describe(thrown) {
    return this.#code.describe(thrown);
  }

  /** Takes a call off the list; the last one of a draining worker ends the process. */
  forget(call) {
    this.#calls.delete(call.id);
    if (this.#state === State.DRAINING && this.#calls.size === 0) this.#leave();
  }

  #prepare() {
    const { prepare } = require('./prepare.js');
    prepare(() => this.#state === State.UNBOUND).catch((error) => fatal(error.stack));
  }

  #receive(frame) {
    switch (frame.kind) {
      case Kind.CALL:
        return this.#onCall(frame);
      case Kind.BODY:
        return this.#calls.get(frame.call)?.receiveBody(frame.body);
      case Kind.END:
        return this.#calls.get(frame.call)?.receiveEnd();
      case Kind.CANCEL:
        return this.#calls.get(frame.call)?.cancel();
      case Kind.WINDOW:
        return this.#calls.get(frame.call)?.grant(frame.bytes);
      case Kind.BIND:
        return this.#onBind(frame);
      default:
        return this.#onDrain();
    }
  }

  #onCall(frame) {
    this.#expect(State.BOUND, 'call');
    if (this.#calls.has(frame.call)) throw new ProtocolError(`call ${frame.call} is running`);
    const call = new this.#Call(this, frame);
    this.#calls.set(call.id, call);
    call.begin();
  }

  #onBind(frame) {
    this.#expect(State.UNBOUND, 'bind');
    if (frame.version !== PROTOCOL_VERSION) throw new ProtocolError(`version ${frame.version}`);
    this.#state = State.BINDING;
    for (const [name, value] of frame.environment) process.env[name] = value;
    this.#load(frame).catch((error) => fatal(error.stack));
  }

  async #load({ codeDirectory, entrypoint }) {
    const { FunctionCode, LoadFailure } = require('./load.js');
    const { captureNativeOutput } = require('./native-output.js');
    this.#Call = require('./call.js').Call;
    captureNativeOutput((fd, text) => this.#print(fd, text));
    this.#code = new FunctionCode(codeDirectory, entrypoint);
    try {
      this.#main = await this.#code.load();
      this.#state = State.BOUND;
      this.writer.bound();
    } catch (failure) {
      this.#state = State.FAILED;
      if (!(failure instanceof LoadFailure)) throw failure;
      this.writer.bindFailed(failure.reason, failure.message);
    }
  }

  #onDrain() {
    this.#expect(State.BOUND, 'drain');
    this.#state = State.DRAINING;
    if (this.#calls.size === 0) this.#leave();
  }

  #expect(state, frame) {
    if (this.#state !== state) throw new ProtocolError(`${frame} in state ${this.#state}`);
  }

  /** After the frames of this turn, so that a call's last frame is among them. */
  #leave() {
    setImmediate(() => {
      this.writer.flush();
      this.#socket.end(() => process.exit(0));
    });
  }

  /** What a call prints after its end belongs to the worker: it is nobody else's. */
  #print(fd, text) {
    const call = this.#current.getStore();
    const isRunning = call !== undefined && !call.isOver;
    if (isRunning && !call.logging) return;
    this.writer.log(isRunning ? call.id : 0, NATIVE_STREAMS + fd, text);
  }

  #onStrayError(error) {
    const call = this.#current.getStore();
    if (call !== undefined && !call.isOver) {
      call.fail(error);
    } else {
      const text = this.#code === undefined ? String(error?.stack ?? error) : this.describe(error);
      this.writer.log(0, NATIVE_ERROR, `${text}\n`);
    }
  }

  /** Runs a piece of the worker itself: what it throws is the end of the process. */
  #guard(step) {
    try {
      step();
    } catch (error) {
      fatal(error instanceof ProtocolError ? `protocol error: ${error.message}` : error.stack);
    }
  }

  #onSocketError(error) {
    if (this.#socket.connecting || error.syscall === 'connect') fatal(error.message);
  }
}

function fatal(message) {
  fs.writeSync(2, `hearth worker: ${message}\n`);
  process.exit(EXIT_BROKEN);
}

/** Where the host listens, by `HEARTH_SOCKET`: a path, or `tcp://address:port` with a token. */
function hostOf(where, token) {
  const tcp = /^tcp:\/\/(?:\[([0-9a-f:]+)\]|([0-9.]+)):(\d{1,5})$/i.exec(where);
  if (tcp !== null) {
    if (!token) fatal('HEARTH_TOKEN is not set');
    return { connect: { host: tcp[1] ?? tcp[2], port: Number(tcp[3]), noDelay: true }, token };
  }
  if (where.includes('://')) fatal(`HEARTH_SOCKET is neither a path nor tcp://ADDRESS:PORT: ${where}`);
  return { connect: { path: where } };
}

function main() {
  const { HEARTH_SOCKET: where, HEARTH_TOKEN: token } = process.env;
  delete process.env.HEARTH_SOCKET;
  delete process.env.HEARTH_TOKEN;
  if (!where) fatal('HEARTH_SOCKET is not set');
  new Worker(hostOf(where, token)).start();
}

main();
