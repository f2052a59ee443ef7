'use strict';

/**
 * What an unbound worker does while the host has nothing to say: it loads what binding needs, and
 * answers one call of a function of its own, so that the paths of the first real ones are known to
 * the interpreter. Measured in README.md.
 */

const { AsyncLocalStorage } = require('node:async_hooks');

const WARM_UP_CALL = Buffer.from(
  [
    '02 00000001', // call 1
    '00000000 01', // no timeout, logging is on
    '00000003 474554', // GET
    '00000000 00000000 00000000 0050', // url, scheme, host, port 80
    '00000000 00000000 0000', // path, query string, query
    '0001 00000001 61 00000000', // a header
    '68', // the body
  ]
    .join('')
    .replaceAll(' ', ''),
  'hex',
);

/**
 * Runs the steps one by one, with a turn of the event loop in front of each, as long as `isIdle`
 * says that there is nothing better to do.
 */
async function prepare(isIdle) {
  const steps = [
    () => require('./call.js'),
    () => require('./load.js'),
    () => require('./native-output.js'),
    warmUp,
  ];
  for (const step of steps) {
    await new Promise(setImmediate);
    if (!isIdle()) return;
    await step();
  }
}

async function warmUp() {
  const { Call } = require('./call.js');
  const { decodeFrame } = require('./frames.js');
  const { FrameWriter } = require('./frame-writer.js');
  const { default: main } = await import('./warm-up.mjs');
  const context = new AsyncLocalStorage();
  const worker = {
    writer: new FrameWriter(() => {}, setImmediate),
    enter: (call, argument) => context.run(call, main, argument),
    forget() {},
  };
  new Call(worker, decodeFrame(WARM_UP_CALL, 0, WARM_UP_CALL.length)).begin();
}

module.exports = { prepare };
