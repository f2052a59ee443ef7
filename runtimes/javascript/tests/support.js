'use strict';

const { FakeHost } = require('./fake-host.js');

/** A worker for one test; it is gone when the test is over. */
async function startWorker(t, options) {
  const host = await FakeHost.start(options);
  t.after(() => host.stop());
  return host;
}

/** A worker bound to a function given as the source of index.js, or as several files. */
async function bindWorker(t, code, options) {
  const host = await startWorker(t);
  const files = typeof code === 'string' ? { 'index.js': code } : code;
  const answer = await host.bind(files, options);
  if (answer.kind !== 'bound') throw new Error(answer.message);
  return host;
}

module.exports = { bindWorker, startWorker };
