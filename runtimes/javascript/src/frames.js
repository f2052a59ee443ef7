'use strict';

/**
 * Decoding: the bytes that the host sends, as frames. The layout is
 * docs/protocols/worker.md; whatever it does not allow is a `ProtocolError`.
 *
 * A `call` is checked completely when it arrives, but its strings are made only when the function
 * asks for them. Until then it is one string with one character for each byte, so that byte
 * offsets are string offsets and taking a field costs no crossing into C++.
 */

const { isUtf8 } = require('node:buffer');

const Kind = Object.freeze({
  BIND: 0x01,
  CALL: 0x02,
  BODY: 0x03,
  END: 0x04,
  CANCEL: 0x05,
  DRAIN: 0x06,
  WINDOW: 0x07,
});

const SHORTEST_FRAME = 5;
const LONGEST_FRAME = 1048576;
const LENGTH_BYTES = 4;

const CALL_LOGGING = 1;
const CALL_MORE = 2;

/** The host sent something that the protocol does not allow. */
class ProtocolError extends Error {}
ProtocolError.prototype.name = 'ProtocolError';

/** Reads the fields of one payload in order and refuses to leave it. */
class Reader {
  constructor(bytes, at, end) {
    this.bytes = bytes;
    this.at = at;
    this.end = end;
    this.ascii = true;
  }

  #advance(count) {
    const from = this.at;
    if (count > this.end - from) throw new ProtocolError('truncated frame');
    this.at = from + count;
    return from;
  }

  u8() {
    return this.bytes[this.#advance(1)];
  }

  u16() {
    const { bytes } = this;
    const at = this.#advance(2);
    return (bytes[at] << 8) | bytes[at + 1];
  }

  u32() {
    return u32At(this.bytes, this.#advance(4));
  }

  /** Passes over a string; returns the position behind it. */
  skipString() {
    const { bytes } = this;
    const from = this.#advance(this.u32());
    for (let i = from; i < this.at; i++) {
      if (bytes[i] > 0x7f) {
        this.#refuseInvalidUtf8(from);
        break;
      }
    }
    return this.at;
  }

  #refuseInvalidUtf8(from) {
    this.ascii = false;
    if (!isUtf8(this.bytes.subarray(from, this.at))) throw new ProtocolError('invalid UTF-8');
  }

  string() {
    const from = this.at + LENGTH_BYTES;
    return this.bytes.toString('utf8', from, this.skipString());
  }

  skipPairs() {
    for (let left = this.u16(); left > 0; left--) {
      this.skipString();
      this.skipString();
    }
    return this.at;
  }

  pairs() {
    const pairs = [];
    for (let left = this.u16(); left > 0; left--) pairs.push([this.string(), this.string()]);
    return pairs;
  }

  /** A copy of what is left: the buffer behind a frame is used again for the next read. */
  rest() {
    const from = this.#advance(this.end - this.at);
    return Buffer.from(this.bytes.subarray(from, this.end));
  }

  finish() {
    if (this.at !== this.end) throw new ProtocolError('bytes behind the payload');
  }
}

/** A call whose strings are decoded each time they are read. */
class CallFrame {
  #text;
  #ascii;
  #ends;

  constructor(id, reader) {
    this.kind = Kind.CALL;
    this.call = id;
    this.timeout = reader.u32();
    const flags = reader.u8();
    if (flags > (CALL_LOGGING | CALL_MORE)) throw new ProtocolError(`call flags ${flags}`);
    this.logging = (flags & CALL_LOGGING) !== 0;
    this.more = (flags & CALL_MORE) !== 0;

    const base = reader.at;
    const method = reader.skipString() - base;
    const url = reader.skipString() - base;
    const scheme = reader.skipString() - base;
    const host = reader.skipString() - base;
    this.port = reader.u16();
    const path = reader.skipString() - base;
    const queryString = reader.skipString() - base;
    const query = reader.skipPairs() - base;
    reader.skipPairs();

    this.#ends = { method, url, scheme, host, path, queryString, query };
    this.#ascii = reader.ascii;
    this.#text = reader.bytes.latin1Slice(base, reader.at);
    this.body = reader.rest();
  }

  get method() {
    return this.#string(LENGTH_BYTES, this.#ends.method);
  }

  get url() {
    return this.#string(this.#ends.method + LENGTH_BYTES, this.#ends.url);
  }

  get scheme() {
    return this.#string(this.#ends.url + LENGTH_BYTES, this.#ends.scheme);
  }

  get host() {
    return this.#string(this.#ends.scheme + LENGTH_BYTES, this.#ends.host);
  }

  get path() {
    return this.#string(this.#ends.host + 2 + LENGTH_BYTES, this.#ends.path);
  }

  get queryString() {
    return this.#string(this.#ends.path + LENGTH_BYTES, this.#ends.queryString);
  }

  /** @returns {Record<string, string>} a new object at each call */
  query() {
    return this.#map(this.#ends.queryString);
  }

  /** @returns {Record<string, string>} a new object at each call */
  headers() {
    return this.#map(this.#ends.query);
  }

  #string(from, to) {
    const text = this.#text.slice(from, to);
    return this.#ascii ? text : Buffer.from(text, 'latin1').toString();
  }

  #u16(at) {
    return (this.#text.charCodeAt(at) << 8) | this.#text.charCodeAt(at + 1);
  }

  #map(at) {
    const map = {};
    let left = this.#u16(at);
    for (at += 2; left > 0; left--) {
      const nameEnd = this.#stringEnd(at);
      const valueEnd = this.#stringEnd(nameEnd);
      const name = this.#string(at + LENGTH_BYTES, nameEnd);
      setOwn(map, name, this.#string(nameEnd + LENGTH_BYTES, valueEnd));
      at = valueEnd;
    }
    return map;
  }

  /** Where the string at `at` ends. A frame is shorter than 2²⁴ bytes, so the top byte is 0. */
  #stringEnd(at) {
    return at + LENGTH_BYTES + ((this.#text.charCodeAt(at + 1) << 16) | this.#u16(at + 2));
  }
}

/** Sets a property whatever its name is; assigning to `__proto__` would be lost. */
function setOwn(object, name, value) {
  if (name !== '__proto__') {
    object[name] = value;
    return;
  }
  Object.defineProperty(object, name, {
    value,
    writable: true,
    enumerable: true,
    configurable: true,
  });
}

function u32At(bytes, at) {
  return ((bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]) >>> 0;
}

/**
 * Decodes the frame whose `kind` stands at `at` and which ends before `end`.
 *
 * Nothing in the result refers to `bytes`.
 */
function decodeFrame(bytes, at, end) {
  const reader = new Reader(bytes, at, end);
  const kind = reader.u8();
  const call = reader.u32();
  if (kind < Kind.BIND || kind > Kind.WINDOW) throw new ProtocolError(`frame of kind ${kind}`);
  const ofWorker = kind === Kind.BIND || kind === Kind.DRAIN;
  if (ofWorker !== (call === 0)) throw new ProtocolError(`frame of kind ${kind} for call ${call}`);

  const frame = kind === Kind.CALL ? new CallFrame(call, reader) : decodePlain(kind, call, reader);
  reader.finish();
  return frame;
}

function decodePlain(kind, call, reader) {
  switch (kind) {
    case Kind.BIND:
      return {
        kind,
        call,
        version: reader.u16(),
        codeDirectory: reader.string(),
        entrypoint: reader.string(),
        environment: reader.pairs(),
      };
    case Kind.BODY:
      return { kind, call, body: notEmpty(reader.rest()) };
    case Kind.CANCEL:
      return { kind, call, reason: cancelReason(reader.u8()) };
    case Kind.WINDOW:
      return { kind, call, bytes: notZero(reader.u32()) };
    default:
      return { kind, call };
  }
}

function notEmpty(body) {
  if (body.length === 0) throw new ProtocolError('empty body frame');
  return body;
}

function cancelReason(reason) {
  if (reason < 1 || reason > 3) throw new ProtocolError(`cancel reason ${reason}`);
  return reason;
}

function notZero(bytes) {
  if (bytes === 0) throw new ProtocolError('window of 0 bytes');
  return bytes;
}

/** Cuts a byte stream into frames; only a frame that spans two reads is copied. */
class FrameReader {
  #onFrame;
  #held = Buffer.alloc(0);
  #filled = 0;

  /** @param {(frame: object) => void} onFrame is called with each decoded frame */
  constructor(onFrame) {
    this.#onFrame = onFrame;
  }

  /** Takes the next bytes of the stream. They may be overwritten when this returns. */
  push(bytes) {
    let at = this.#filled > 0 ? this.#completeHeld(bytes) : 0;
    while (bytes.length - at >= LENGTH_BYTES) {
      const end = at + LENGTH_BYTES + frameLength(bytes, at);
      if (end > bytes.length) break;
      this.#onFrame(decodeFrame(bytes, at + LENGTH_BYTES, end));
      at = end;
    }
    if (at < bytes.length) this.#hold(bytes, at, bytes.length);
  }

  /** Adds what the held frame still lacks; returns how many bytes that took. */
  #completeHeld(bytes) {
    let used = 0;
    if (this.#filled < LENGTH_BYTES) {
      used = this.#hold(bytes, 0, LENGTH_BYTES - this.#filled);
      if (this.#filled < LENGTH_BYTES) return used;
    }
    const size = LENGTH_BYTES + frameLength(this.#held, 0);
    used += this.#hold(bytes, used, used + size - this.#filled);
    if (this.#filled === size) {
      this.#filled = 0;
      this.#onFrame(decodeFrame(this.#held, LENGTH_BYTES, size));
    }
    return used;
  }

  #hold(bytes, from, to) {
    const part = bytes.subarray(from, to);
    const needed = this.#filled + part.length;
    if (needed > this.#held.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(needed, 2 * this.#held.length));
      larger.set(this.#held.subarray(0, this.#filled));
      this.#held = larger;
    }
    this.#held.set(part, this.#filled);
    this.#filled = needed;
    return part.length;
  }
}

function frameLength(bytes, at) {
  const length = u32At(bytes, at);
  if (length < SHORTEST_FRAME || length > LONGEST_FRAME) {
    throw new ProtocolError(`frame of ${length} bytes`);
  }
  return length;
}

module.exports = { Kind, ProtocolError, FrameReader, decodeFrame };
