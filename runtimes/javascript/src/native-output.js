'use strict';

const { Writable } = require('node:stream');

/** A stand-in for one of the process's own streams. */
class NativeOutput extends Writable {
  #print;

  constructor(fd, print) {
    super({ decodeStrings: false });
    this.fd = fd;
    this.#print = print;
  }

  _write(chunk, encoding, done) {
    if (chunk.length > 0) this.#print(typeof chunk === 'string' ? chunk : chunk.toString());
    done();
  }
}

/**
 * Sends what the program writes to `process.stdout` and `process.stderr`, and with them everything
 * of `console`, to `print(fd, text)`. Each stream is made when it is first used. What is written
 * past them, to the descriptors, goes where the descriptors go.
 */
function captureNativeOutput(print) {
  for (const [fd, name] of [
    [1, 'stdout'],
    [2, 'stderr'],
  ]) {
    let stream;
    Object.defineProperty(process, name, {
      get: () => (stream ??= new NativeOutput(fd, (text) => print(fd, text))),
      configurable: true,
      enumerable: true,
    });
  }
}

module.exports = { captureNativeOutput };
