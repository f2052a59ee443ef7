'use strict';

const { createRequest } = require('./request.js');
const { createResponse, readReply, chunkBytes, isBlob, UnusableReply } = require('./response.js');
const { formatEntry } = require('./format.js');
const { ProtocolError } = require('./frames.js');
const { BODY_LIMIT } = require('./frame-writer.js');

const Failure = Object.freeze({ THREW: 1, UNUSABLE: 2, CANCELLED: 3 });
const Stream = Object.freeze({ LOG: 1, ERROR: 2 });

const MOST_CREDIT = 2 ** 31 - 1;

/**
 * One call, from its first frame to the frame that ends it.
 *
 * ```text
 * gathering ──► running ──► over          gathering: the request's body is still coming
 *     └────────────┴─────────▲            over: nothing more is sent for this call
 * ```
 */
class Call {
  #worker;
  #frame;
  #parts;
  #over = false;
  #source;
  #credit = BODY_LIMIT;
  #wake;

  constructor(worker, frame) {
    this.#worker = worker;
    this.#frame = frame;
    this.id = frame.call;
    this.logging = frame.logging;
  }

  get isOver() {
    return this.#over;
  }

  /** Runs the function, at once or when the body is complete. */
  begin() {
    if (!this.#frame.more) {
      this.#run();
      return;
    }
    this.#parts = [];
    if (this.#frame.body.length > 0) this.#gather(this.#frame.body);
  }

  receiveBody(bytes) {
    if (this.#parts === undefined) throw new ProtocolError('body frame without a body');
    this.#gather(bytes);
  }

  receiveEnd() {
    if (this.#parts === undefined) throw new ProtocolError('end frame without a body');
    this.#frame.body = Buffer.concat(this.#parts);
    this.#parts = undefined;
    this.#run();
  }

  /** The host lets that much more of the reply's body come. */
  grant(bytes) {
    this.#credit += bytes;
    if (this.#credit > MOST_CREDIT) throw new ProtocolError('window beyond its limit');
    this.#wake?.();
  }

  /** Answers at once. Code that merely waits is left alone; nothing it does counts any more. */
  cancel() {
    this.#fail(Failure.CANCELLED, '');
  }

  /** Ends the call because of something that its code threw, here or anywhere. */
  fail(thrown) {
    if (!this.#over) this.#fail(Failure.THREW, this.#worker.describe(thrown));
  }

  #gather(bytes) {
    this.#parts.push(bytes);
    this.#worker.writer.window(this.id, bytes.length);
  }

  #run() {
    try {
      const output = this.#worker.enter(this, this.#context());
      if (isThenable(output)) this.#replyLater(output);
      else this.#reply(output);
    } catch (thrown) {
      this.fail(thrown);
    }
  }

  #replyLater(output) {
    Promise.resolve(output).then(
      (value) => this.#reply(value),
      (thrown) => this.fail(thrown),
    );
  }

  #context() {
    return {
      req: createRequest(this.#frame),
      res: createResponse(),
      log: (...values) => this.#log(Stream.LOG, values),
      error: (...values) => this.#log(Stream.ERROR, values),
    };
  }

  #log(stream, values) {
    if (this.#over || !this.logging) return;
    this.#worker.writer.log(this.id, stream, formatEntry(values));
  }

  #reply(output) {
    if (this.#over) return;
    try {
      const { status, headers, body } = readReply(output);
      if (typeof body === 'string') this.#whole(status, headers, body);
      else if (isBlob(body)) this.#stream(status, headers, onlyChunk(body.arrayBuffer()));
      else if (!(body instanceof Uint8Array)) this.#stream(status, headers, body);
      else if (body.length <= BODY_LIMIT) this.#whole(status, headers, body);
      else this.#stream(status, headers, onlyChunk(body));
    } catch (thrown) {
      if (thrown instanceof UnusableReply) this.#fail(Failure.UNUSABLE, thrown.message);
      else this.fail(thrown);
    }
  }

  #whole(status, headers, body) {
    this.#finish();
    this.#worker.writer.head(this.id, status, false, headers, body);
  }

  #stream(status, headers, source) {
    this.#source = source;
    this.#worker.writer.head(this.id, status, true, headers, '');
    this.#pump().catch((thrown) => this.fail(thrown));
  }

  async #pump() {
    const source = this.#source;
    for (;;) {
      // A generator's body runs in the context of whoever asks for its next value.
      const { done, value } = await this.#worker.runIn(this, () => source.next());
      if (this.#over) return;
      if (done) break;
      await this.#sendChunk(chunkBytes(value));
      if (this.#over) return;
    }
    this.#source = undefined;
    this.#finish();
    this.#worker.writer.end(this.id);
  }

  async #sendChunk(bytes) {
    let at = 0;
    while (at < bytes.length && !this.#over) {
      if (this.#credit === 0) {
        await new Promise((resolve) => {
          this.#wake = resolve;
        });
        continue;
      }
      const size = Math.min(bytes.length - at, this.#credit, BODY_LIMIT);
      this.#worker.writer.body(this.id, bytes.subarray(at, at + size));
      this.#credit -= size;
      at += size;
    }
  }

  #fail(reason, message) {
    if (this.#over) return;
    this.#finish();
    this.#worker.writer.failed(this.id, reason, message);
    this.#stopSource();
    this.#wake?.();
  }

  #stopSource() {
    const source = this.#source;
    this.#source = undefined;
    if (source === undefined) return;
    // What a stream says about being stopped has nobody left to be said to.
    Promise.resolve()
      .then(() => this.#worker.runIn(this, () => source.stop()))
      .catch(() => {});
  }

  #finish() {
    this.#over = true;
    this.#parts = undefined;
    this.#worker.forget(this);
  }
}

function isThenable(value) {
  return typeof value === 'object' && value !== null && typeof value.then === 'function';
}

/** A source of one chunk, which may be a promise. */
function onlyChunk(bytes) {
  const chunks = (async function* () {
    yield bytes;
  })();
  return { next: () => chunks.next(), stop() {} };
}

module.exports = { Call };
