'use strict';

/**
 * `context.res`, which only builds values, and the reading of whatever a function returned: such a
 * value, an object that looks like one, a web `Response`, an iterator or a stream.
 */

const MOST_HEADERS = 256;
const MOST_HEADER_BYTES = 65536;
// The writer reserves three bytes for each unit; beyond this, measuring first is cheaper.
const LARGE_TEXT = 16384;

const NOTHING_RETURNED =
  'Return statement missing. return context.res.empty() if no response is expected.';

/** The function returned something that cannot be a reply. */
class UnusableReply extends Error {}

/** A new `context.res`. Its functions do not depend on `this`. */
function createResponse() {
  return { text: send, json, binary: send, empty, redirect, send };
}

function send(body, statusCode = 200, headers = {}) {
  return { body, statusCode, headers };
}

function json(value, statusCode = 200, headers = {}) {
  const typed = withHeader(headers, 'content-type', 'application/json');
  return { body: JSON.stringify(value), statusCode, headers: typed };
}

function empty() {
  return { body: '', statusCode: 204, headers: {} };
}

function redirect(url, statusCode = 301, headers = {}) {
  return { body: '', statusCode, headers: withHeader(headers, 'location', String(url)) };
}

/** A copy of `headers` in which `name`, however it was spelled, is `value`. */
function withHeader(headers, name, value) {
  if (isIterable(headers)) {
    return [
      ...[...headers].filter(([other]) => String(other).toLowerCase() !== name),
      [name, value],
    ];
  }
  const copy = { ...headers };
  for (const other of Object.keys(copy)) {
    if (other.toLowerCase() === name) delete copy[other];
  }
  copy[name] = value;
  return copy;
}

/**
 * Reads what a function returned.
 *
 * @returns {{ status: number, headers: string[], body: unknown }} headers are names and values in
 *   turn; the body is a string, bytes, a `Blob`, or a source of chunks
 */
function readReply(output) {
  if (output === undefined || output === null) throw new UnusableReply(NOTHING_RETURNED);
  const source = sourceOf(output);
  if (source !== undefined) return { status: 200, headers: [], body: source };
  if (!isResponse(output)) throw new UnusableReply(notAResponse(output));

  const status = output[Symbol.toStringTag] === 'Response' ? output.status : output.statusCode;
  return {
    status: readStatus(status),
    headers: readHeaders(output.headers),
    body: readBody(output.body),
  };
}

/**
 * Whether there is anything of a response in a value. Text, numbers and lists are none; an object
 * without anything is an empty one.
 */
function isResponse(output) {
  if (typeof output !== 'object' || Array.isArray(output)) return false;
  if ('body' in output || 'statusCode' in output || 'headers' in output) return true;
  return output.constructor === Object && Object.keys(output).length === 0;
}

function notAResponse(output) {
  const name = typeof output === 'object' ? output.constructor?.name : undefined;
  const kind = typeof name === 'string' && name !== '' ? name : typeof output;
  return `A function must return a response such as context.res.text(), not ${kind}.`;
}

function readStatus(status = 200) {
  if (status === null) return 200;
  const code = Number(status);
  if (Number.isInteger(code) && code >= 100 && code <= 999) return code;
  throw new UnusableReply(`Status code ${String(status)} is not an integer from 100 to 999.`);
}

function readHeaders(headers) {
  const pairs = [];
  if (headers === undefined || headers === null) return pairs;
  if (isIterable(headers)) {
    for (const [name, value] of headers) addHeader(pairs, name, value);
  } else {
    for (const name of Object.keys(headers)) addHeader(pairs, name, headers[name]);
  }
  refuseTooManyHeaders(pairs);
  return pairs;
}

function addHeader(pairs, name, value) {
  if (Array.isArray(value)) {
    for (const one of value) addHeader(pairs, name, one);
  } else if (value !== undefined && value !== null) {
    pairs.push(String(name), String(value));
  }
}

function refuseTooManyHeaders(pairs) {
  if (pairs.length / 2 > MOST_HEADERS) {
    throw new UnusableReply(`The reply has more than ${MOST_HEADERS} headers.`);
  }
  let bytes = 0;
  for (const text of pairs) bytes += 4 + 3 * text.length;
  if (bytes <= MOST_HEADER_BYTES) return;
  bytes = pairs.reduce((sum, text) => sum + 4 + Buffer.byteLength(text), 0);
  if (bytes > MOST_HEADER_BYTES) {
    throw new UnusableReply(`The reply's headers are larger than ${MOST_HEADER_BYTES} bytes.`);
  }
}

function readBody(body) {
  if (typeof body === 'string') return body.length > LARGE_TEXT ? Buffer.from(body) : body;
  if (body === undefined || body === null) return '';
  if (typeof body !== 'object') return String(body);
  if (isBlob(body)) return body;
  return bytesOf(body) ?? sourceOf(body) ?? readBody(JSON.stringify(body));
}

/** The bytes of an `ArrayBuffer` or of any view of one; `undefined` for everything else. */
function bytesOf(value) {
  if (value instanceof Uint8Array) return value;
  if (ArrayBuffer.isView(value)) {
    return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  }
  const tag = Object.prototype.toString.call(value);
  const isBuffer = tag === '[object ArrayBuffer]' || tag === '[object SharedArrayBuffer]';
  return isBuffer ? new Uint8Array(value) : undefined;
}

function isBlob(value) {
  return typeof value.arrayBuffer === 'function' && typeof value.stream === 'function';
}

function isIterable(value) {
  return (
    typeof value === 'object' && value !== null && typeof value[Symbol.iterator] === 'function'
  );
}

/**
 * Where the chunks of a streamed body come from, or `undefined` if `value` is not a stream or an
 * iterator. Arrays and strings can be iterated but are bodies of their own.
 *
 * @returns {{ next(): unknown, stop(): unknown } | undefined} `next` is that of an iterator;
 *   `stop` releases what is behind it and is safe to call while `next` is pending
 */
function sourceOf(value) {
  if (typeof value !== 'object' || value === null) return undefined;
  if (typeof value.getReader === 'function') {
    const reader = value.getReader();
    return { next: () => reader.read(), stop: () => reader.cancel() };
  }
  if (typeof value[Symbol.asyncIterator] === 'function') {
    const iterator = value[Symbol.asyncIterator]();
    // The iterator of a Node stream queues `return` behind a pending read, `destroy` does not.
    const isNodeStream = typeof value.destroy === 'function';
    return sourceFrom(iterator, isNodeStream ? () => value.destroy() : undefined);
  }
  return typeof value.next === 'function' ? sourceFrom(value) : undefined;
}

function sourceFrom(iterator, stop = () => iterator.return?.()) {
  return { next: () => iterator.next(), stop };
}

/** The bytes of one streamed chunk. */
function chunkBytes(chunk) {
  if (typeof chunk === 'string') return Buffer.from(chunk);
  const bytes = bytesOf(chunk);
  if (bytes !== undefined) return bytes;
  throw new TypeError(`A chunk of a streamed body must be a string or bytes, not ${typeof chunk}.`);
}

module.exports = { createResponse, readReply, chunkBytes, isBlob, UnusableReply };
