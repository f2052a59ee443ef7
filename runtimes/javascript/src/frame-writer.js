'use strict';

/**
 * Encoding: the frames that the worker sends. Frames are gathered and leave together, in one
 * write, when the current turn of the event loop has produced all it had to say.
 */

const Kind = Object.freeze({
  HELLO: 0x81,
  BOUND: 0x82,
  BIND_FAILED: 0x83,
  HEAD: 0x84,
  BODY: 0x85,
  END: 0x86,
  LOG: 0x87,
  FAILED: 0x88,
  WINDOW: 0x89,
});

/** The most bytes of a reply's body in one frame, and before the host has granted more. */
const BODY_LIMIT = 262144;
const LOG_LIMIT = 65536;

const CHUNK_BYTES = 65536;
const MOST_BYTES_PER_UNIT = 3;
const FRAME_HEAD_BYTES = 9;
const HEAD_MORE = 1;
// Below this length a loop over the characters beats the call into C++.
const SHORT_STRING = 24;

class FrameWriter {
  #write;
  #schedule;
  #scheduled = false;
  #chunk = Buffer.alloc(0);
  #sent = 0;
  #at = 0;
  #endTurn = () => {
    this.#scheduled = false;
    this.flush();
  };

  /**
   * @param {(bytes: Buffer) => void} write sends bytes; it may keep them, they never change
   * @param {(flush: () => void) => void} schedule runs `flush` later in this turn
   */
  constructor(write, schedule) {
    this.#write = write;
    this.#schedule = schedule;
  }

  /** Sends what has been gathered. */
  flush() {
    if (this.#at === this.#sent) return;
    const bytes = this.#chunk.subarray(this.#sent, this.#at);
    this.#sent = this.#at;
    this.#write(bytes);
  }

  hello({ language, languageVersion, workerVersion, versions, capabilities, mostCalls }) {
    const strings = [language, languageVersion, workerVersion];
    const start = this.#open(Kind.HELLO, 0, 12 + roomFor(strings));
    this.#u16(versions[0]);
    this.#u16(versions[1]);
    for (const string of strings) this.#string(string);
    this.#u32(capabilities);
    this.#u32(mostCalls);
    this.#close(start);
  }

  bound() {
    this.#close(this.#open(Kind.BOUND, 0, 0));
  }

  bindFailed(reason, message) {
    this.#reasonAndMessage(Kind.BIND_FAILED, 0, reason, message);
  }

  failed(call, reason, message) {
    this.#reasonAndMessage(Kind.FAILED, call, reason, message);
  }

  /**
   * @param {string[]} headers names and values in turn
   * @param {string | Uint8Array} body
   */
  head(call, status, more, headers, body) {
    const start = this.#open(Kind.HEAD, call, 5 + roomFor(headers) + roomForBody(body));
    this.#u16(status);
    this.#u8(more ? HEAD_MORE : 0);
    this.#u16(headers.length / 2);
    for (let i = 0; i < headers.length; i++) this.#string(headers[i]);
    this.#rest(body);
    this.#close(start);
  }

  body(call, bytes) {
    const start = this.#open(Kind.BODY, call, bytes.length);
    this.#rest(bytes);
    this.#close(start);
  }

  end(call) {
    this.#close(this.#open(Kind.END, call, 0));
  }

  /**
   * Sends text, in as many frames as its length needs, without parting a character. Log frames
   * leave at once: the code that logs may go on to an endless loop, and what it said before must
   * be kept.
   */
  log(call, stream, text) {
    const most = Math.floor(LOG_LIMIT / MOST_BYTES_PER_UNIT);
    let from = 0;
    while (text.length - from > most) {
      const to = wholeCharacters(text, from + most);
      this.#logPart(call, stream, text.slice(from, to));
      from = to;
    }
    this.#logPart(call, stream, from === 0 ? text : text.slice(from));
    this.flush();
  }

  window(call, bytes) {
    const start = this.#open(Kind.WINDOW, call, 4);
    this.#u32(bytes);
    this.#close(start);
  }

  #logPart(call, stream, text) {
    const start = this.#open(Kind.LOG, call, 1 + roomForBody(text));
    this.#u8(stream);
    this.#rest(text);
    this.#close(start);
  }

  #reasonAndMessage(kind, call, reason, message) {
    const start = this.#open(kind, call, 1 + 4 + MOST_BYTES_PER_UNIT * message.length);
    this.#u8(reason);
    this.#string(message);
    this.#close(start);
  }

  #open(kind, call, room) {
    this.#reserve(FRAME_HEAD_BYTES + room);
    if (!this.#scheduled) {
      this.#scheduled = true;
      this.#schedule(this.#endTurn);
    }
    const start = this.#at;
    this.#at = start + 4;
    this.#u8(kind);
    this.#u32(call);
    return start;
  }

  #close(start) {
    putU32(this.#chunk, start, this.#at - start - 4);
  }

  /** Chunks are filled once and never reused: the socket may still be sending them. */
  #reserve(bytes) {
    if (this.#chunk.length - this.#at >= bytes) return;
    if (this.#at > this.#sent) this.#write(this.#chunk.subarray(this.#sent, this.#at));
    this.#chunk = Buffer.allocUnsafeSlow(Math.max(CHUNK_BYTES, bytes));
    this.#sent = 0;
    this.#at = 0;
  }

  #u8(value) {
    this.#chunk[this.#at++] = value;
  }

  #u16(value) {
    this.#chunk[this.#at++] = value >>> 8;
    this.#chunk[this.#at++] = value;
  }

  #u32(value) {
    putU32(this.#chunk, this.#at, value);
    this.#at += 4;
  }

  #string(text) {
    const length = this.#text(text, this.#at + 4);
    putU32(this.#chunk, this.#at, length);
    this.#at += 4 + length;
  }

  #rest(body) {
    if (typeof body === 'string') {
      this.#at += this.#text(body, this.#at);
    } else {
      this.#chunk.set(body, this.#at);
      this.#at += body.length;
    }
  }

  /** Writes text at `at`; returns its length in bytes. */
  #text(text, at) {
    const chunk = this.#chunk;
    if (text.length > SHORT_STRING) return chunk.write(text, at);
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      if (unit > 0x7f) return chunk.write(text, at);
      chunk[at + i] = unit;
    }
    return text.length;
  }
}

function putU32(chunk, at, value) {
  chunk[at] = value >>> 24;
  chunk[at + 1] = value >>> 16;
  chunk[at + 2] = value >>> 8;
  chunk[at + 3] = value;
}

function roomFor(strings) {
  let room = 0;
  for (let i = 0; i < strings.length; i++) room += 4 + MOST_BYTES_PER_UNIT * strings[i].length;
  return room;
}

function roomForBody(body) {
  return typeof body === 'string' ? MOST_BYTES_PER_UNIT * body.length : body.length;
}

/** The largest cut of `text` not above `at` that does not part a surrogate pair. */
function wholeCharacters(text, at) {
  const unit = text.charCodeAt(at - 1);
  const isHighSurrogate = unit >= 0xd800 && unit <= 0xdbff;
  return isHighSurrogate ? at - 1 : at;
}

module.exports = { FrameWriter, BODY_LIMIT, wholeCharacters };
